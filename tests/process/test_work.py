"""The work of the parts: through a file and through editing, and what it costs on a machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from distpro_cli.errors import ProcessError
from distpro_cli.process.cost import Part, weighed
from distpro_cli.process.editing import average, only, smoothed
from distpro_cli.process.file import load_process, save_process, to_bytes, version_of
from distpro_cli.process.fitting import fit
from distpro_cli.process.machine import BUILT_IN, Machine, Work
from distpro_cli.process.process import Process
from tests.process.examples import make_process
from tests.process.test_version_2 import changed

SLOW = Machine(flops_per_byte=2.0, backward_factor=3.0, operation_bytes=10.0, name="a slow one, float32")
PARTS = (
    Part("student forward", 130.0, None, Work(100, 180, 0, 4)),
    Part("student backward", 170.0, None, Work(100, 0, 300, 4)),
    Part("teacher 4", 60.0, tuple(range(10)), Work(60, 0, 0, 1)),
    *(Part(f"pathway {k}", 10.0 + k, (k,), Work(10 + k, 0, 0, 0)) for k in range(10)),
)


def working() -> Process:
    """A process that knows what its parts do."""
    return replace(make_process(), parts=PARTS)


def test_work_goes_through_a_file_in_equal_bytes(tmp_path: Path) -> None:
    process = working()
    assert process.holds_work and version_of(process) == 2
    save_process(process, tmp_path / "p.safetensors")
    again = load_process(tmp_path / "p.safetensors")
    assert again.parts == PARTS and again.machine == BUILT_IN
    assert to_bytes(again) == to_bytes(process)


def test_what_knows_no_work_is_written_as_before() -> None:
    bare = replace(working(), parts=tuple(replace(part, work=None) for part in PARTS))
    assert version_of(bare) == 1 and b"work" not in to_bytes(bare)
    assert not bare.holds_work and bare.on_machine(SLOW) is bare
    foreign = changed(to_bytes(bare), lambda m: m.update(work="?"))
    assert foreign != to_bytes(bare)  # a file of version 1 may hold what it likes there


def test_a_file_of_version_1_says_nothing_of_work(tmp_path: Path) -> None:
    (tmp_path / "p.safetensors").write_bytes(changed(to_bytes(make_process()), lambda m: m.update(work="?")))
    assert load_process(tmp_path / "p.safetensors").parts == ()


def test_costs_on_a_machine() -> None:
    process = working().on_machine(SLOW)
    assert [part.cost for part in process.parts[:3]] == [100 + 90 + 40, 100 + 450 + 40, 60 + 10]
    assert process.machine == SLOW and [part.work for part in process.parts] == [part.work for part in PARTS]
    assert weighed(PARTS, SLOW) == process.parts
    assert process.relative_cost(process.schedule()) == pytest.approx(1)
    with pytest.raises(ProcessError, match="its costs are those on a slow one, float32; a file holds those of the"):
        to_bytes(process)


def test_editing_and_fitting_keep_work() -> None:
    process = working()
    ids = [process.pathways[k].id for k in (2, 5)]
    cut = only(process, ids)
    kept = (*PARTS[:3], PARTS[3 + 2], PARTS[3 + 5])
    assert [part.work for part in cut.parts] == [part.work for part in kept]
    assert smoothed(process, 0.1).parts == average([process, process]).parts == process.mean_over_time().parts == PARTS
    turned = fit(process, process.pathways[::-1])
    assert turned.parts[-1].work == PARTS[-1].work and turned.parts[-1].pathways == (0,)


def test_work_of_some_parts_alone_is_refused() -> None:
    with pytest.raises(ProcessError, match="12 of 13 parts hold their work; all of them do, or none"):
        replace(make_process(), parts=(replace(PARTS[0], work=None), *PARTS[1:]))
