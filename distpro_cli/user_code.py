"""Runs a Python file of the user's, once per process: its networks, transform blocks and distances."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from distpro_cli.errors import DistproError
from distpro_cli.files import expand_path


def load_python_file(text: str, what: str) -> ModuleType:
    """Runs the file at `text` and returns its module; a file that was run before is not run again.

    Args:
        text: Path; `~` and environment variables are expanded.
        what: Who asks, for the error message, such as `network own.py:Net`.

    Raises:
        DistproError: the file is missing, or raises while it runs.
    """
    path = expand_path(text)
    if not path.is_file():
        raise DistproError(f"{what}: there is no file {path} (seen from {Path.cwd()})")
    path = path.resolve()
    # Files of one stem in two folders stay apart.
    name = f"distpro_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pickling look themselves up
    sys.path.insert(0, str(path.parent))  # the files beside it can be imported, as Python does for a script
    try:
        with contextlib.redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        reason = str(error).partition("\n")[0]
        place = _line_of(error, path)
        raise DistproError(f"{what}: {path}{place} cannot be imported: {type(error).__name__}: {reason}") from error
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(path.parent))
    return module


def _line_of(error: BaseException, path: Path) -> str:
    if isinstance(error, SyntaxError):
        return f":{error.lineno}"
    steps = traceback.walk_tb(error.__traceback__)
    lines = [line for frame, line in steps if frame.f_code.co_filename == str(path)]
    return f":{lines[-1]}" if lines else ""
