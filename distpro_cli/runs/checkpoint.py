"""Checkpoints: written aside, flushed and renamed, so that a killed run leaves the last good one."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch

from distpro_cli.errors import DistproError
from distpro_cli.files import write_atomically
from distpro_cli.world import current_world


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Replaces `path` by `state`, or leaves what was there; of many ranks, the main one does.

    Raises:
        DistproError: the folder is read-only or the disk full.
    """
    if not current_world().is_main:
        return
    # Through memory, so that a full disk is an OSError of ours and not one inside torch's writer.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint into main memory, without unpickling code.

    What takes the state back moves it to its own device; counters of steps, such as Adam's, stay in main memory, where
    reading them makes no device wait.

    Raises:
        DistproError: there is none, or it is not one.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DistproError(f"{path}: no checkpoint there; start the run without --resume") from None
    except OSError as error:
        raise DistproError(f"{path}: cannot be read ({error.strerror})") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        # torch's message advises to read the file without its protection
        raise DistproError(f"{path}: not a checkpoint of distpro, or damaged; start over with --force") from error
    return state
