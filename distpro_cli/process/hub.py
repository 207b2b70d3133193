"""Processes on the Hugging Face hub: fetched, and published with a card. What is fetched is a stranger's file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distpro_cli.errors import DistproError, first_line
from distpro_cli.process.container import MAX_BYTES

_ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+?)(?:@([\w./-]+?))?/([\w.-]+(?:/[\w.-]+)*\.safetensors)")
_REPO = re.compile(r"[\w.-]+/[\w.-]+")
CARD = "README.md"


def fetch(address: str) -> Path:
    """Fetches a process file into the hub's cache.

    Args:
        address: `hf://owner/repo/file.safetensors`, or `hf://owner/repo@revision/file.safetensors`.

    Raises:
        DistproError: there is none, it is too large, or the hub cannot be reached and the cache does not have it.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or ".." in match[3].split("/"):
        raise DistproError(f"{address}: expected hf://owner/repo/file.safetensors, or hf://owner/repo@revision/...")
    repo, revision, filename = match.groups()
    with _said(address):
        import huggingface_hub as hub

        cached = hub.try_to_load_from_cache(repo, filename, revision=revision)
        try:
            size = hub.get_hf_file_metadata(hub.hf_hub_url(repo, filename, revision=revision)).size
        except Exception as error:
            if not (_is_offline(error) and isinstance(cached, str)):
                raise
            return Path(cached)  # as it was fetched before
        if size is not None and size > MAX_BYTES:
            raise DistproError(
                f"{address}: {size / 2**20:.0f} MiB; a process file has at most {MAX_BYTES // 2**20} MiB"
            )
        return Path(hub.hf_hub_download(repo, filename, revision=revision))


def publish(path: Path, repo: str, card: str, *, private: bool, force: bool) -> str:
    """Puts a process file and its card into a repository of the hub, which is made if it is not there.

    Args:
        path: The process file; it keeps its name.
        repo: `owner/name`.
        card: Becomes the repository's README.md.
        private: Whether a new repository can be seen by its owner alone.
        force: Whether files that are there are replaced.

    Returns:
        The address under which `--process` finds it.

    Raises:
        DistproError: the file is there already, or the hub refuses or cannot be reached.
    """
    check_repo(repo)
    with _said(f"publish to {repo}"):
        import huggingface_hub as hub

        api = hub.HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        taken = [name for name in (path.name, CARD) if api.file_exists(repo, name)]
        if taken and not force:
            raise DistproError(f"{repo} holds {' and '.join(taken)} already; --force replaces them")
        operations = [
            hub.CommitOperationAdd(path.name, str(path)),
            hub.CommitOperationAdd(CARD, card.encode("utf-8")),
        ]
        api.create_commit(repo, operations, commit_message=f"Process {path.name}")
    return f"hf://{repo}/{path.name}"


def check_repo(repo: str) -> None:
    """Refuses what is no `owner/name`.

    Raises:
        DistproError: with an example.
    """
    if _REPO.fullmatch(repo) is None:
        raise DistproError(f"'{repo}' is no repository of the Hugging Face hub; expected owner/name")


@contextmanager
def _said(what: str) -> Iterator[None]:
    """Turns what huggingface_hub raises into one line."""
    try:
        yield
    except DistproError:
        raise
    except ImportError as error:
        raise DistproError(f"{what}: huggingface_hub is missing ({error}); pip install huggingface_hub") from None
    except Exception as error:
        raise DistproError(f"{what}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    kinds, status = _kinds(error), _status(error)
    if _is_offline(error):
        return f"the Hugging Face hub cannot be reached ({type(error).__name__}); fetch the file elsewhere and name it"
    if "RepositoryNotFoundError" in kinds or status in (401, 403):
        return "there is no such repository, or you may not use it; for your own: hf auth login"
    if kinds & {"EntryNotFoundError", "RevisionNotFoundError"} or status == 404:
        return "the repository has no such file or revision"
    return f"the Hugging Face hub answered {status}: {first_line(error)}" if status is not None else first_line(error)


def _is_offline(error: Exception) -> bool:
    """Tells whether there was no answer; the types go by name, as the libraries behind the hub's client change."""
    known = {"OfflineModeIsEnabled", "TransportError", "LocalEntryNotFoundError", "ConnectionError", "TimeoutError"}
    return _status(error) is None and bool(_kinds(error) & known)


def _kinds(error: Exception) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)
