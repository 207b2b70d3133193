"""The modes of `--match`: which levels correspond, what is refused, and which flags a refusal names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from distpro_cli.errors import DistproError, ProcessError
from distpro_cli.process.fitting import ALLOWANCES, How, find_match, fit, other_taps
from distpro_cli.process.pathway import LevelInfo, PathwayInfo
from distpro_cli.process.process import Process
from tests.process.examples import lower_pathways, make_pathway, make_process

ANYTHING = frozenset(ALLOWANCES)


def maps(*reductions: int, vectors: int = 0, logits: bool = False) -> list[LevelInfo]:
    """Levels with so many pixels per cell, of images of 64 pixels, then vectors, then logits."""
    count = len(reductions) + vectors + logits
    found = [
        LevelInfo(n, count, f"stage{n}", "map", reduction, (8 * n, 64 // reduction, 64 // reduction))
        for n, reduction in enumerate(reductions, start=1)
    ]
    found += [LevelInfo(len(found) + 1 + n, count, "pooled", "vector", None, (99,)) for n in range(vectors)]
    return [*found, *([LevelInfo(count, count, "logits", "logits", None, (10,))] if logits else [])]


def blocks(count: int) -> list[LevelInfo]:
    """Equally fine levels of tokens, as of a transformer."""
    return [LevelInfo(n, count, f"blocks.{n}", "tokens", 16, (17, 32)) for n in range(1, count + 1)]


def same(teacher: Sequence[LevelInfo], student: Sequence[LevelInfo], step: int = 1) -> list[PathwayInfo]:
    """Pathways between levels of the same rank, of every `step`-th one."""
    pairs = list(zip(teacher, student, strict=True))[step - 1 :: step]
    return [PathwayInfo(f"{i.number}-{j.number}", i, j, "conv2", "hcl") for i, j in pairs]


def between(teacher: list[LevelInfo], student: list[LevelInfo], *ids: str) -> list[PathwayInfo]:
    numbers = [tuple(map(int, name.split("-"))) for name in ids]
    return [PathwayInfo(f"{i}-{j}", teacher[i - 1], student[j - 1], "conv2", "hcl") for i, j in numbers]


def driven(process: Process, pair: list[PathwayInfo], mode: str, *allow: str) -> dict[str, str]:
    match = find_match(process, pair, How(mode, frozenset(allow)))
    return {info.id: own.id for own, info in match.joined}


def test_by_level_channels_and_sizes_do_not_count_and_exactly_they_do() -> None:
    process = make_process(pathways=same(maps(1, 2, 4), maps(1, 2, 4)))
    wider = [
        replace(info, student=replace(info.student, shape=(99, 5, 5), grid=None, name="other"))
        for info in process.pathways
    ]
    assert fit(process, wider, How("level")).pathways == tuple(wider)
    assert fit(process, wider, How("strict")).pathways == tuple(wider)  # its name in earlier versions
    assert fit(process, process.pathways, How("exact")).pathways == process.pathways
    with pytest.raises(ProcessError, match=r"student's level 8x64x64 in the process, 99x5x5 in the pair: 1-1\n"):
        fit(process, wider, How("exact"))
    options = [replace(info, transform_options={"width": 3}) for info in process.pathways]
    assert fit(process, options).pathways == tuple(options)
    with pytest.raises(ProcessError, match=r"options of the transform \{\} in the process, \{'width': 3\}"):
        fit(process, options, How("exact"))


def test_by_reduction_the_finest_level_may_be_another_number() -> None:
    teacher, student = maps(4, 8, 16, 32, vectors=1, logits=True), maps(2, 4, 8, 16, 32, vectors=1, logits=True)
    process = make_process(pathways=between(teacher, teacher, "1-1", "2-1", "4-4", "5-5", "6-6"))
    pair = between(student, student, "2-2", "3-2", "5-5", "6-6", "7-7")
    assert driven(process, pair, "reduction") == {
        "2-2": "1-1", "3-2": "2-1", "5-5": "4-4", "6-6": "5-5", "7-7": "6-6",
    }  # fmt: skip
    fitted = fit(process, pair, How("reduction"))
    np.testing.assert_array_equal(fitted.weights, process.weights)
    # 14 pixels per cell are 16's; levels that are equally fine tell nothing.
    odd = [replace(level, reduction=14) if level.reduction == 16 else level for level in student]
    assert len(driven(process, between(odd, odd, "4-4", "5-5"), "reduction")) == 1
    assert driven(make_process(pathways=same(blocks(4), blocks(4))), same(blocks(4), blocks(4)), "reduction") == {}


def test_by_depth_a_transformer_of_another_length_is_driven() -> None:
    process = make_process(pathways=same(blocks(12), blocks(12)))
    # The third of six blocks lies at the sixth of twelve.
    expected = {f"{n}-{n}": f"{2 * n}-{2 * n}" for n in range(1, 7)}
    assert driven(process, same(blocks(6), blocks(6)), "depth", "lost") == expected
    back = make_process(pathways=same(blocks(6), blocks(6)))
    assert driven(back, same(blocks(12), blocks(12)), "depth", "new") == {own: pair for pair, own in expected.items()}
    with pytest.raises(ProcessError) as error:
        fit(process, same(blocks(6), blocks(6)), How("depth"))
    assert "only in the process: 1-1, 3-3" in str(error.value)
    assert "--allow lost: 6 of the process's 12 pathways would drive 6 of the pair's 6" in str(error.value)


def test_levels_without_a_pathway_count_for_depth_where_the_file_knows_them() -> None:
    levels = maps(1, 2, 4, 8, vectors=1)
    process = make_process(pathways=between(levels, levels, "2-2", "4-4"))
    known = replace(process, teacher_levels=tuple(levels), student_levels=tuple(levels))
    pair = maps(1, 2, vectors=1)
    both = (pair, pair)
    for one, expected in ((known, {"1-1": "2-2", "2-2": "4-4"}), (process, {"1-1": "2-2", "2-2": "4-4"})):
        match = find_match(one, between(pair, pair, "1-1", "2-2"), How("depth"), both)
        assert {info.id: own.id for own, info in match.joined} == expected
    # With the two last levels alone the file must know the others.
    late = make_process(pathways=between(levels, levels, "3-3", "4-4"))
    late = replace(late, teacher_levels=tuple(levels), student_levels=tuple(levels))
    match = find_match(late, between(pair, pair, "1-1", "2-2"), How("depth", ANYTHING), both)
    assert {info.id: own.id for own, info in match.joined} == {"2-2": "4-4"}


def test_nothing_is_lost_or_invented_unless_allowed() -> None:
    process = make_process(pathways=lower_pathways())
    fewer, more = lower_pathways()[3:], [*lower_pathways(), make_pathway(1, 2)]
    with pytest.raises(ProcessError, match="only in the process: 1-1, 2-1, 2-2"):
        fit(process, fewer)
    fitted = fit(process, fewer, How(allow=frozenset({"lost"})))
    np.testing.assert_array_equal(fitted.weights, process.weights[:, 3:])
    with pytest.raises(ProcessError, match="only in the pair: 1-2"):
        fit(process, more, How(allow=frozenset({"lost"})))
    fitted = fit(process, more, How(allow=frozenset({"new"})))
    assert fitted.pathways == lower_pathways()
    # Thresholds and shares speak of the whole table.
    whole, part = process.schedule(keep=0.3), fit(process, fewer, How(allow=frozenset({"lost"}))).schedule(keep=0.3)
    np.testing.assert_array_equal(part.mask, whole.mask[:, 3:])


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("transform", {"transform": "attention"}),
        ("distance", {"distance": "mse"}),
        ("kind", {"teacher": LevelInfo(2, 4, "tokens", "tokens", 4, (16, 8))}),
        ("count", {"student": LevelInfo(1, 7, "layer1", "map", 2, (16, 16, 16))}),
    ],
)
def test_what_differs_is_named_with_the_flag_that_allows_it(key: str, change: dict[str, object]) -> None:
    process = make_process()
    pair = [replace(info, **change) if info.id == "2-1" else info for info in process.pathways]  # type: ignore[arg-type]
    with pytest.raises(ProcessError) as error:
        fit(process, pair)
    assert "2-1" in str(error.value) and "3-1" not in str(error.value)
    assert f"--allow {key}: 10 of the process's 10 pathways would drive 10 of the pair's 10" in str(error.value)
    np.testing.assert_array_equal(fit(process, pair, How(allow=frozenset({key}))).weights, process.weights)


def test_what_is_the_same_goes_before_what_is_alike() -> None:
    by_conv, by_attention = make_pathway(2, 1), make_pathway(2, 1, transform="attention", name="2-1:b")
    process = make_process(pathways=[by_conv, by_attention])
    other = make_pathway(2, 1, transform="linear", name="2-1:c")
    pair = [replace(other, id="x"), replace(by_conv, id="y")]
    fitted = fit(process, pair, How(allow=frozenset({"transform"})))
    np.testing.assert_array_equal(fitted.weights, process.weights[:, [1, 0]])


def test_the_mapping_is_plain_json() -> None:
    levels = maps(1, 2, vectors=1)
    process = make_process(pathways=same(levels, levels))
    wider = [replace(process.pathways[0], teacher=replace(levels[0], shape=(3, 64, 64))), *process.pathways[1:2]]
    values = find_match(process, wider, How(allow=frozenset({"lost"}))).values()
    assert json.loads(json.dumps(values)) == {
        "mode": "level",
        "allow": ["lost"],
        "pathways": [
            {"pair": "1-1", "process": "1-1", "rule": "level"},
            {"pair": "2-2", "process": "2-2", "rule": "exact"},
        ],
        "lost": ["3-3"],
        "left_out": [],
    }


def test_another_tap_is_said_once() -> None:
    levels = [replace(level, feature="output") for level in maps(1, 2)]
    process = make_process(pathways=same(levels, levels))
    before = [replace(level, feature="before-activation") for level in levels]
    match = find_match(process, same(levels, before))
    assert other_taps(process, match) == [
        "student levels were tapped at output in the search, and are at before-activation here"
    ]
    assert other_taps(process, find_match(process, same(levels, levels))) == []
    # A file that says nothing of its levels has it in its recipe: `output`, unless that says otherwise.
    old = make_process(pathways=same(maps(1, 2), maps(1, 2)))
    assert len(other_taps(old, find_match(old, same(before, before)))) == 2
    assert other_taps(replace(old, recipe="nothing"), find_match(old, same(before, before))) == []


def test_an_allowance_that_is_none_is_refused() -> None:
    with pytest.raises(
        DistproError, match=r"--allow: there is no 'loss' \(did you mean 'lost'\?\); there are: lost, n"
    ):
        How(allow=frozenset({"loss"}))
