"""Which method is recommended, and how sure that is; intervals against scipy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from scipy import stats

from distpro_cli.metric import Metric
from distpro_cli.report.comparison import NO_SEARCH, UNKNOWN_COST, SearchCost, summarize_method
from distpro_cli.report.verdict import Choice, choose

TOP = Metric("top1", "top-1", "%")
ERROR = Metric("mse", "squared error", "mm", higher_is_better=False)


def row(
    name: str,
    values: Sequence[float],
    seconds: float = 10,
    search: SearchCost = NO_SEARCH,
    metric: Metric = TOP,
    runs: str = "",
) -> dict[str, Any]:
    summaries = [
        {
            "student": {f"{metric.name}_last": value, f"{metric.name}_best": value},
            "seconds": seconds,
            "device_seconds": seconds,
            "remaining_percent": 100.0,
            "pathways_used": 1,
            "run_dir": f"{runs or name}-seed{seed}",
        }
        for seed, value in enumerate(values)
    ]
    return summarize_method(name, summaries, None, search, metric)


def chosen(rows: Sequence[dict[str, Any]], metric: Metric = TOP) -> Choice:
    choice = choose(rows, metric)
    assert choice is not None
    return choice


STUDENT_ROW = row("student", [46.0, 46.5, 45.6, 46.2], 5)


def test_a_clear_winner() -> None:
    kd = row("kd", [51.0, 51.4, 50.9, 51.3])
    review = row("reviewkd", [60.1, 60.3, 59.8, 60.4], 20)
    found = chosen([STUDENT_ROW, kd, review]).values("ce + 5 × hcl(3-3)")
    assert (found["method"], found["over"], found["sure"]) == ("reviewkd", "kd", "beyond chance")
    assert found["within_chance"] == ["reviewkd"] and found["comparisons"] == 2
    values = [review["top1_last"]["values"], kd["top1_last"]["values"]]
    expected = stats.ttest_rel(*values).confidence_interval(1 - 0.05 / 2)  # Bonferroni over two comparisons
    assert found["interval"] == pytest.approx([expected.low, expected.high])
    assert found["difference"] == pytest.approx(9.0)
    to_student = stats.ttest_rel(values[0], STUDENT_ROW["top1_last"]["values"]).confidence_interval(1 - 0.05 / 2)
    assert found["over_student"]["interval"] == pytest.approx([to_student.low, to_student.high])
    assert found["sentence"].startswith(
        "For this pair use reviewkd: top-1 60.15 %, 9.00 points ahead of kd, beyond chance (95 % interval "
        f"{expected.low:+.2f} to {expected.high:+.2f} "
        "over 4 seeds, 2 comparisons allowed for); it is 14.07 points ahead of the student alone, beyond chance (95 %"
    )
    assert found["sentence"].endswith("; its loss is ce + 5 × hcl(3-3).")


def test_two_methods_alone_get_the_plain_paired_interval() -> None:
    kd = row("kd", [51.0, 51.4, 50.9, 51.3])
    found = chosen([STUDENT_ROW, kd]).values("ce")
    expected = stats.ttest_rel(kd["top1_last"]["values"], STUDENT_ROW["top1_last"]["values"]).confidence_interval(0.95)
    assert found["interval"] == pytest.approx([expected.low, expected.high])
    assert found["over_student"] == {"difference": found["difference"], "interval": found["interval"]}
    assert "comparisons" not in found["sentence"] and found["sentence"].count("student alone") == 0


def test_of_equals_the_cheapest_with_its_search() -> None:
    process = row("process", [60.3, 60.0, 60.5, 59.9], 20, SearchCost(400, 400, estimated=True))
    uniform = row("uniform", [59.9, 60.2, 60.0, 60.1], 25)
    found = chosen([STUDENT_ROW, process, uniform]).values("ce")
    assert (found["method"], found["over"], found["sure"]) == ("uniform", "process", "within chance")
    assert found["difference"] == pytest.approx(-0.125) and found["interval"][0] < 0 < found["interval"][1]
    assert found["within_chance"] == ["process", "uniform"]
    assert "use uniform: top-1 60.05 %, 0.12 points behind process, within chance (95 %" in found["sentence"]
    assert "costs less than process (25 against 420 device seconds, search included)" in found["sentence"]
    cheap = chosen([STUDENT_ROW, {**process, "search_device_seconds": 0.0}, uniform]).values("ce")
    assert (cheap["method"], cheap["over"]) == ("process", "uniform")
    assert "ahead of uniform, within chance" in cheap["sentence"] and "costs less than uniform" in cheap["sentence"]
    unknown = chosen([{**process, "search_device_seconds": UNKNOWN_COST.device_seconds}, uniform]).values("ce")
    assert unknown["method"] == "uniform" and "costs less" not in unknown["sentence"]
    assert "costs 25 device seconds, while the search behind process took an unknown time" in unknown["sentence"]


def test_what_is_within_chance_is_compared_before_what_is_not() -> None:
    best = row("kd", [60.0, 60.2, 60.1], 10)
    steady = row("hint", [59.0, 59.2, 59.1], 20)
    wild = row("uniform", [50.0, 64.0, 57.0], 30)
    found = chosen([best, steady, wild]).values("ce")
    assert (found["method"], found["over"], found["sure"]) == ("kd", "uniform", "within chance")


def test_one_seed_tells_nothing_of_chance() -> None:
    found = chosen([row("student", [46.0]), row("kd", [51.0]), row("hint", [50.0])]).values("ce")
    assert (found["method"], found["over"], found["interval"]) == ("kd", "hint", None)
    assert found["sure"] == "one seed: no telling how sure"
    assert found["within_chance"] == [] and found["over_student"] == {"difference": 5.0, "interval": None}
    assert found["sentence"] == (
        "For this pair use kd: top-1 51.00 %, 1.00 points ahead of hint in the only seed, so there is no telling how "
        "sure that is; it is 5.00 points ahead of the student alone; its loss is ce."
    )


@pytest.mark.parametrize("values", [[40.0, 41.0, 39.5], [46.3, 46.1, 46.4]])
def test_where_nothing_beats_the_student(values: list[float]) -> None:
    alone = row("student", [46.0, 46.5, 45.6], 50)  # dearer by a whim of the clock
    found = chosen([row("kd", values, 10), alone]).values("ce")
    assert found["method"] == "student" and found["over"] == "kd" and found["over_student"] is None
    assert found["sentence"].startswith("For this pair train the student alone: top-1 46.03 %,")
    assert "costs less" not in found["sentence"]


def test_a_metric_of_which_less_is_better() -> None:
    alone = row("student", [2.0, 2.1, 2.2], metric=ERROR)
    kd = row("kd", [1.0, 1.12, 1.21], metric=ERROR)
    found = chosen([alone, kd], ERROR).values("squared_error")
    assert (found["method"], found["sure"]) == ("kd", "beyond chance")
    assert found["difference"] == pytest.approx(-0.99) and found["interval"][0] < found["interval"][1] < 0
    assert "squared error 1.11 mm, 0.99 mm ahead of student, beyond chance (95 % interval +0.9" in found["sentence"]


def test_methods_of_the_same_runs_are_one() -> None:
    twice = [row(name, [60.0, 60.4], runs="same") for name in ("process:a", "process:b")]
    found = chosen([row("student", [40.0, 40.3]), *twice]).values("ce")
    assert (found["method"], found["over"], found["comparisons"]) == ("process:a", "student", 1)
    empty = chosen([row("plain", [40.0], runs="same"), row("student", [40.0], runs="same")]).values("ce")
    assert (empty["method"], empty["over"], empty["sure"]) == ("student", None, None)
    assert "with nothing else to compare it with; its loss is ce." in empty["sentence"]


def test_what_did_not_end_in_a_number_is_no_candidate() -> None:
    assert choose([], TOP) is None
    assert choose([row("kd", [float("nan")])], TOP) is None
    assert chosen([row("kd", [float("nan")]), row("student", [40.0])]).method["name"] == "student"
