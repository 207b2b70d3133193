"""The ranks of a run: the processes that torchrun started, each with its part of every batch. One process is a world.

Alone, every method gives back what it is given, so that a run in one process computes as if there were none of this.
Gradients, losses and parameters lie where the run computes (NCCL on CUDA, Gloo on the CPU); what ranks tell each other
otherwise goes through main memory, and makes no device wait.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from typing_extensions import override

from distpro_cli.errors import DistproError

if TYPE_CHECKING:
    from torch import Tensor

Anything = TypeVar("Anything")

LONGEST_WAIT = timedelta(hours=1)  # for a slower rank; one that has died is noticed at once, or ended by torchrun
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_RESTARTS = "TORCHELASTIC_RESTART_COUNT"


class World:
    """One process alone.

    Attributes:
        rank: Of this process, from 0.
        size: Number of ranks.
        local_rank: Of this process on its machine, from 0.
    """

    rank = local_rank = 0
    size = 1

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and speaks; the others compute."""
        return self.rank == 0

    @property
    def restarted(self) -> bool:
        """Whether torchrun has started these ranks again after some have died."""
        return False

    @property
    def command(self) -> list[str]:
        """What starts such a run on the command line."""
        return ["distpro"]

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Returns the mean of every tensor over the ranks, without graph, by one all-reduce for each dtype and device.

        All ranks get the same bits.
        """
        return list(tensors)

    def sum(self, tensor: Tensor) -> Tensor:
        """Returns the sum of a tensor over the ranks."""
        return tensor

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Returns for every flag whether it is set on any rank."""
        return flags

    def broadcast(self, value: Anything) -> Anything:
        """Returns the main rank's value, which can be pickled."""
        return value

    def barrier(self) -> None:
        """Waits until all ranks are here."""

    def check_same(self, state: Mapping[str, Any]) -> None:
        """Compares the tensors in `state`, nested as they like, by a checksum of their bits.

        Raises:
            DistproError: the ranks do not hold the same ones; it names the key.
        """


class Ranks(World):
    """One of several processes, in torch's default process group."""

    def __init__(self) -> None:
        import torch
        from torch import distributed
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        cuda = torch.cuda.is_available() and distributed.is_nccl_available()
        self._distributed = distributed
        with _explained():
            store, self.rank, self.size = next(rendezvous("env://", timeout=LONGEST_WAIT))
            # torchrun may keep one store for all its restarts, and in it the addresses of ranks that have died.
            self._store = PrefixStore(f"distpro/{os.environ.get(_RESTARTS, 0)}", store)
            distributed.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                store=self._store,
                rank=self.rank,
                world_size=self.size,
                timeout=LONGEST_WAIT,
            )
        self.local_rank = int(os.environ.get("LOCAL_RANK", self.rank))

    @property
    @override
    def restarted(self) -> bool:
        return int(os.environ.get(_RESTARTS, 0)) > 0

    @property
    @override
    def command(self) -> list[str]:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        machines = ["--nnodes", str(self.size // here)] if here < self.size else []
        return ["torchrun", *machines, "--nproc-per-node", str(here), "-m", "distpro_cli"]

    @override
    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        import torch

        kinds: dict[Any, list[int]] = {}
        for number, tensor in enumerate(tensors):
            kinds.setdefault((tensor.dtype, tensor.device), []).append(number)
        means = list(tensors)
        for numbers in kinds.values():
            flat = torch.cat([tensors[number].detach().reshape(-1) for number in numbers])
            self._all_reduce(flat).div_(self.size)
            parts = flat.split([tensors[number].numel() for number in numbers])
            for number, part in zip(numbers, parts, strict=True):
                means[number] = part.view(tensors[number].shape)
        return means

    @override
    def sum(self, tensor: Tensor) -> Tensor:
        return self._all_reduce(tensor.detach().clone())

    @override
    def any(self, *flags: bool) -> tuple[bool, ...]:
        import torch

        found = self._all_reduce(torch.tensor(flags, dtype=torch.int32))
        return tuple(count > 0 for count in found.tolist())

    @override
    def broadcast(self, value: Anything) -> Anything:
        import torch

        values = [value]
        with _explained():
            self._distributed.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    @override
    def barrier(self) -> None:
        self.any(False)

    @override
    def check_same(self, state: Mapping[str, Any]) -> None:
        import torch

        own = torch.tensor([_checksum(part) for part in state.values()])
        first = torch.tensor(self.broadcast(own.tolist()))
        differs = self.any(*(own != first).tolist())
        if different := [key for key, wrong in zip(state, differs, strict=True) if wrong]:
            raise DistproError(
                f"the ranks do not hold the same {different[0]} any more: something there is random, or depends on the "
                "images of one rank alone (a network's own buffers, parameters that only some images reach); train it "
                "in one process"
            )

    def tells_error(self) -> bool:
        """Says whether this rank's error is the first one; asked once."""
        try:
            return bool(self._store.add("errors", 1) == 1)
        except RuntimeError:  # whoever kept count is gone
            return True

    def leave(self) -> None:
        """Ends the process group, at the end of a run that went well."""
        self._distributed.destroy_process_group()

    def _all_reduce(self, tensor: Tensor) -> Tensor:
        with _explained():
            self._distributed.all_reduce(tensor)
        return tensor


_world = World()


def current_world() -> World:
    """Returns the world of this process: alone, except inside `joined`."""
    return _world


def several_are_named() -> bool:
    """Says whether the environment, as torchrun sets it, makes this process one of several ranks."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and all(os.environ.get(name) for name in _NEEDED)


@contextmanager
def joined() -> Iterator[World]:
    """Joins the ranks that torchrun's environment names, if it names several, and leaves them at the end.

    What ranks other than the main one print on stdout goes nowhere, and so does what a rank says of an error that is
    not the first: one rank's error ends the others, too.

    Raises:
        DistproError: they cannot be reached.
    """
    global _world
    if not several_are_named():
        yield _world
        return
    ranks = _world = Ranks()
    nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # closed by the end of the process
    try:
        if not ranks.is_main:
            sys.stdout = nowhere
        yield ranks
        ranks.leave()
    except BaseException:
        if not ranks.tells_error():
            sys.stderr = nowhere
        raise
    finally:
        _world = World()


@contextmanager
def _explained() -> Iterator[None]:
    """Rephrases what torch says where ranks cannot reach each other."""
    try:
        yield
    except RuntimeError as error:
        raise DistproError(
            "another rank of this run has ended, or cannot be reached; torchrun says below which one it was (--debug: "
            "what torch says); with --max-restarts N torchrun starts such a run again from its checkpoint"
        ) from error


def _checksum(state: Any) -> int:
    """Returns a number in [0, 2⁶³) that follows from the bits of all tensors in `state`."""
    import torch
    from torch.utils._pytree import tree_leaves

    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    tensors = [leaf.detach() for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor)]
    bits = [tensor.contiguous().reshape(-1).view(whole.get(tensor.element_size(), torch.int64)) for tensor in tensors]
    sums = [part.sum(dtype=torch.int64) for part in bits]
    text = repr([int(one) for one in sums]).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
