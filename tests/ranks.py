"""Many ranks without torchrun: forked from the test's process, since that has imported everything."""

from __future__ import annotations

import os
import socket
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore

from distpro_cli.world import joined

NO_RANKS = not hasattr(os, "fork") or not torch.distributed.is_gloo_available()


def fork_ranks(size: int, work: Callable[[], int | None], environment: dict[str, str] | None = None) -> list[int]:
    """Runs `work` on ranks 0 to size - 1 in torchrun's environment; returns their exit statuses, -9 where killed.

    Args:
        size: Number of ranks.
        work: Returns an exit status, None for 0.
        environment: Further variables.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(size):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
            child = os.fork()
        if child == 0:
            status = 1
            try:
                torch.set_num_threads(1)
                torch.cuda.is_available = lambda: False  # which does not work in a fork
                os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", **(environment or {})}
                status = work() or 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    # As torchrun's, beside the ranks; after the forks, since its thread may hold a lock that a child would wait for.
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    assert store.port == port
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def results_of_ranks(size: int, work: Callable[[], Any], folder: Path) -> list[Any]:
    """Runs `work` on ranks that have joined; returns what it gave on each."""

    def joined_work() -> None:
        with joined() as world:
            torch.save(work(), folder / f"{world.rank}.pt")

    assert fork_ranks(size, joined_work) == [0] * size
    return [torch.load(folder / f"{rank}.pt") for rank in range(size)]
