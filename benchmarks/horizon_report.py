"""What `horizon.py` reports: every estimator of d(final loss)/d(weight) beside the truth, from the files of its seeds.

With p_k = ⟨v, ∇_w D_k(w_t)⟩, v the gradient of the outer loss behind step t, w the student's parameters:

| estimator | of d(final loss)/d(weight_k) in step t, up to a factor |
| --- | --- |
| one_step | -lr · p_k: the hypergradient of a search (Deng et al. 2022) |
| one_step_without_lr | -p_k: what alpha sees under `search.lr_in_hypergradient: false` |
| averaged | -p_k, averaged over time at 0.9 |
| later_h | -⟨v, ∇_w D_k(w_t)⟩ with v from h steps later, near the end from the last step |
| cosine | -p_k / (‖v‖ ‖∇_w D_k‖) |
| normalised | derivative by weight_k of -⟨v, g⟩/‖g‖ with g = Σ weight_l ∇_w D_l; averages as below |
| horizon_h | derivative of the outer loss after h real steps, through momentum and transform blocks |
| size | -‖∇_w D_k‖: a control that looks at no outer image |

For `horizon_h` the run is cut into stretches of h steps, and every step of a stretch is judged at the stretch's end: an
exact unroll, as a search that moves its weights every h steps would see it. `normalised` is our reading of two ideas of
GraP (arXiv 2605.07756), products and covariances averaged at 0.9 and weights in units of ‖Σ weight_l g_l‖, with
parameters' gradients in place of those at its cut. It sees how weight is shared out, not how much there is:
Σ_k weight_k · normalised_k = 0.

An estimator's figures are those of its mean over seeds and over the steps of a window; the truth of a window is the
sum over its steps: the derivative by a weight that is in force for that window.

Shape legend: s seeds, t steps, w windows, k pathways, n draws.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distpro_cli.errors import DistproError

Table = NDArray[np.float64]

KEEP = 0.9  # of the running averages
NUM_SPLITS = 500
NUM_DRAWS = 2000


def merge(folder: Path, num_windows: int, settings: dict[str, Any] | None, first_step: int = 0) -> dict[str, Any]:
    """Returns the report of all seeds in a folder, as values that JSON knows.

    Args:
        folder: Of the seeds' files.
        num_windows: Of time.
        settings: Those that all seeds must have been run with; None: those of the first.
        first_step: With which the first window begins; what a run does before is left out.

    Raises:
        DistproError: there is no seed, or some were run with other settings.
    """
    files = sorted(folder.glob("seed-*.npz"), key=lambda path: (len(path.name), path.name))
    files = [path for path in files if not path.name.endswith(".part.npz")]
    if not files:
        raise DistproError(f"{folder}: no seed has been run; run without --report first")
    seeds = [_load(path) for path in files]
    settings = settings or seeds[0]["about"]["settings"]
    if num_windows > settings["steps"] - first_step:
        raise DistproError(f"--windows {num_windows} from step {first_step} on: a run has {settings['steps']} steps")
    for path, seed in zip(files, seeds, strict=True):
        for key, value in seed["about"]["settings"].items():
            if value != settings[key]:
                raise DistproError(
                    f"{path}: run with {key} = {value}, not {settings[key]}; give --out another folder, or remove it"
                )
    finite = [seed for seed in seeds if all(np.isfinite(value).all() for key, value in seed.items() if key != "about")]
    if not finite:
        raise DistproError(f"{folder}: in no seed is the derivative finite; take fewer steps, or a smaller lr")
    omitted = [seed["about"]["seed"] for seed in seeds if not any(seed is kept for kept in finite)]
    report = _report([_from(seed, first_step) for seed in finite], num_windows)
    return _plain(report | {"first_step": first_step, "omitted_seeds": omitted, "settings": settings})


def _from(seed: dict[str, Any], first_step: int) -> dict[str, Any]:
    return {key: value if key in ("about", "weights") else value[first_step:] for key, value in seed.items()}


def _load(path: Path) -> dict[str, Any]:
    with np.load(path) as file:
        return {key: json.loads(str(file[key])) if key == "about" else file[key] for key in file.files}


def _report(seeds: list[dict[str, Any]], num_windows: int) -> dict[str, Any]:
    about = [seed["about"] for seed in seeds]
    truth_swk = np.stack([_windows(seed["truth"], num_windows, np.sum) for seed in seeds])
    tables = [estimators(seed) for seed in seeds]
    estimates = {
        name: np.stack([_windows(table[name], num_windows, np.mean) for table in tables]) for name in tables[0]
    }
    found = {name: _figures(estimate_swk, truth_swk) for name, estimate_swk in estimates.items()}
    chosen = "one_step" if about[0]["lr_in_hypergradient"] else "one_step_without_lr"
    reliability = _reliability(truth_swk)
    norms_s = _norm(truth_swk, (1, 2))
    mean_wk, overall_sw = truth_swk.mean(0), truth_swk.mean(2)
    return {
        "reliability": reliability["corrected"],
        "one_step": found["one_step"]["cosine"],
        "chosen": found[chosen]["cosine"],
        "chosen_name": chosen,
        "highest_cosine": np.sqrt(np.maximum(reliability["corrected"], 0.0)),
        "reliability_in_detail": reliability
        | {
            "windows_at_norm_1": _reliability(truth_swk / _norm(truth_swk, 2).mean(0))["corrected"],
            "seeds_at_norm_1": _reliability(truth_swk / _norm(truth_swk, (1, 2)))["corrected"],
        },
        "estimators": found,
        "truth": {
            "mean_per_window": overall_sw.mean(0),
            "error_per_window": _standard_error(overall_sw),
            "per_window_and_pathway": mean_wk,
            "error_per_window_and_pathway": _standard_error(truth_swk),
            "largest_seed_share": float(norms_s.max() / norms_s.sum()),
        },
        "pathways": about[0]["pathways"],
        "seeds": [one["seed"] for one in about],
        "rate_per_window": _windows(seeds[0]["rate"][:, None], num_windows, np.mean)[:, 0],
        "weights": seeds[0]["weights"],
        "distance_per_window": np.mean([_windows(seed["distance"], num_windows, np.mean) for seed in seeds], axis=0),
        "final_loss": float(np.mean([one["final_loss"] for one in about])),
        "final_top1": float(np.mean([one["final_top1"] for one in about])),
        "seconds_per_seed": float(np.mean([one["seconds"] for one in about])),
        "devices": sorted({one["device"] for one in about}),
    }


def estimators(seed: dict[str, Any]) -> dict[str, Table]:
    """Returns every estimator's table [T, K] of a seed; the signs are those of the truth."""
    product_tk, gram_tkk, weight_k = seed["product"], seed["gram"], seed["weights"]
    norm_tk = np.sqrt(np.diagonal(gram_tkk, axis1=1, axis2=2))
    tiny = np.finfo(np.float64).tiny
    averaged_tk, covariance_tkk = _averaged(product_tk), _averaged(gram_tkk)
    pull_tk = covariance_tkk @ weight_k
    square_t = np.maximum(pull_tk @ weight_k, tiny)[:, None]
    along_t = (averaged_tk @ weight_k)[:, None] / square_t
    found = {
        "one_step": -seed["rate"][:, None] * product_tk,
        "one_step_without_lr": -product_tk,
        "averaged": -averaged_tk,
        "cosine": -product_tk / np.maximum(norm_tk * seed["outer_norm"][:, None], tiny),
        "normalised": -(averaged_tk - along_t * pull_tk) / np.sqrt(square_t),
        "size": -norm_tk,
    }
    found |= {f"later_{key.removeprefix('product_')}": -seed[key] for key in seed if key.startswith("product_")}
    return found | {key: seed[key] for key in seed if key.startswith("horizon_")}


def _averaged(values_t: Table) -> Table:
    averages = [values_t[0]]
    for value in values_t[1:]:
        averages.append(KEEP * averages[-1] + (1 - KEEP) * value)
    return np.stack(averages)


def _windows(values_tk: Table, num_windows: int, merged: Callable[..., Any]) -> Table:
    return np.stack([merged(part, axis=0) for part in np.array_split(values_tk, num_windows)])


def _figures(estimate_swk: Table, truth_swk: Table) -> dict[str, Any]:
    estimate_wk, truth_wk = estimate_swk.mean(0), truth_swk.mean(0)
    draws_ns = np.random.default_rng(0).integers(len(truth_swk), size=(NUM_DRAWS, len(truth_swk)))
    drawn_n = _cosine(_flat(estimate_swk[draws_ns].mean(1)), _flat(truth_swk[draws_ns].mean(1)))
    per_window_w = _cosine(estimate_wk, truth_wk)
    return {
        "cosine": _cosine(_flat(estimate_wk), _flat(truth_wk)),
        "interval": np.percentile(drawn_n, [2.5, 97.5]) if len(truth_swk) > 1 else None,
        "cosine_centred": _cosine(_flat(_centred(estimate_wk)), _flat(_centred(truth_wk))),
        "mean_over_windows": per_window_w.mean(),
        "per_window": per_window_w,
        "per_window_centred": _cosine(_centred(estimate_wk), _centred(truth_wk)),
        "over_time": _cosine(_centred(estimate_wk.mean(1)), _centred(truth_wk.mean(1))),
        "signs_right": int((np.sign(estimate_wk.mean(1)) == np.sign(truth_wk.mean(1))).sum()),
        "mean_per_window": estimate_wk.mean(1),
    }


def _reliability(truth_swk: Table) -> dict[str, Any]:
    """Returns the split-half reliability of the mean over seeds; `corrected` and all others by Spearman-Brown."""
    count = len(truth_swk)
    if count < 2:
        return dict.fromkeys(("corrected", "uncorrected", "centred", "over_time", "per_window"), math.nan)
    generator = np.random.default_rng(0)
    orders = np.stack([generator.permutation(count) for _ in range(NUM_SPLITS)])
    first, second = (truth_swk[part].mean(1) for part in (orders[:, : count // 2], orders[:, count // 2 :]))

    def halves(change: Callable[[Table], Table]) -> Any:
        return _cosine(_centred(change(first)), _centred(change(second))).mean(0)

    whole = halves(_flat)
    return {
        "corrected": _corrected(whole),
        "uncorrected": whole,
        "centred": _corrected(halves(lambda table: _flat(_centred(table)))),
        "over_time": _corrected(halves(lambda table: table.mean(-1))),
        "per_window": _corrected(halves(lambda table: table)),
    }


def _norm(table: Table, axis: int | tuple[int, int]) -> Table:
    return np.maximum(np.linalg.norm(table, axis=axis, keepdims=True), np.finfo(np.float64).tiny)


def _corrected(correlation: Any) -> Any:
    return np.where(correlation > 0, 2 * correlation / (1 + np.abs(correlation)), correlation)


def _standard_error(values_s: Table) -> Table:
    return (
        values_s.std(0, ddof=1) / math.sqrt(len(values_s)) if len(values_s) > 1 else np.full(values_s.shape[1:], np.nan)
    )


def _flat(table: Table) -> Table:
    return table.reshape(*table.shape[:-2], -1)


def _centred(values: Table) -> Table:
    return values - values.mean(-1, keepdims=True)


def _cosine(left: Table, right: Table) -> Any:
    lengths = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    return (left * right).sum(-1) / np.maximum(lengths, np.finfo(np.float64).tiny)


def _plain(value: Any) -> Any:
    """Returns a value as JSON knows it, with null for what is not a number."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_report(report: dict[str, Any]) -> None:
    """Prints the report's tables."""
    truth, detail = report["truth"], report["reliability_in_detail"]
    print(f"{len(report['seeds'])} seeds, {report['settings']['steps']} steps, {', '.join(report['devices'])}")
    if report["first_step"]:
        print(f"windows from step {report['first_step']} on")
    print(f"final held-out loss {report['final_loss']:.4f}, top-1 {report['final_top1']:.2f} %")
    print(
        f"reliability of the truth (Spearman-Brown) {_text(report['reliability'])}, highest cosine "
        f"{_text(report['highest_cosine'])}; over time {_text(detail['over_time'])}, windows at norm 1 "
        f"{_text(detail['windows_at_norm_1'])}, seeds at norm 1 {_text(detail['seeds_at_norm_1'])}"
    )
    print("\n" + _row("d(final loss)/d(weight)", range(1, 1 + len(truth["mean_per_window"])), "9d"))
    for name, values in zip(report["pathways"], zip(*truth["per_window_and_pathway"], strict=True), strict=True):
        print(_row(name, values, "9.1e"))
    print(_row("mean", truth["mean_per_window"], "9.1e"))
    print(_row("standard error", truth["error_per_window"], "9.1e"))
    print(_row("reliability", detail["per_window"] or [], "9.2f"))
    heads = "    all           95 %  windows  centred  in time  signs  by window"
    print(f"\n{'cosine to the truth':24}{heads}")
    for name, one in report["estimators"].items():
        figures = [one["cosine"], *(one["interval"] or [None, None])]
        figures += [one["mean_over_windows"], one["cosine_centred"], one["over_time"]]
        texts = [_text(value, 2).rjust(width) for value, width in zip(figures, (7, 8, 7, 9, 9, 9), strict=True)]
        mark = " *" if name == report["chosen_name"] else ""
        signs = f"{one['signs_right']}/{len(one['per_window'])}".rjust(7)
        print(f"{name + mark:24}" + "".join(texts) + signs + "  " + _row("", one["per_window"], "6.2f").lstrip())
    print("all: over windows and pathways; windows: mean of those by window; centred: without the mean over pathways;")
    print("in time: correlation of that mean over windows; signs: of that mean; *: what alpha sees by this recipe")


def _row(name: str, values: Iterable[float | None], form: str) -> str:
    return f"{name:24}" + "".join(format(math.nan if value is None else value, form) for value in values)


def _text(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
