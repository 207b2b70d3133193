"""What distillation is truly worth, when: a whole run differentiated by every pathway's weight in every step.

    CIFAR10=/data/cifar10 python benchmarks/horizon.py --teacher wrn_16_2.safetensors --seeds 0-31 --workers 16 --json

Without $CIFAR10 the pair is the quickstart's on the digits; without --teacher the recipe's teacher is trained first.
A student is distilled for some steps by the package's own steps, with the constant weights that a search starts from.
Then the derivative of its final held-out loss by the weights is carried back through every step of the optimiser,
momentum and transform blocks included. On the way back every estimator looks at the same states.

Each seed is one file in --out, so a run that was cut goes on where it was, in whole seeds; --report merges what is
there, under any --windows, from any --from-step on. --check compares all derivatives with finite differences in
float64 and ends.

| key | what |
| --- | --- |
| reliability | split-half reliability of the truth over windows and pathways, see below |
| one_step | cosine, over windows and pathways, of the one-step hypergradient to the truth |
| chosen | likewise, of what alpha sees by the recipe's `search.lr_in_hypergradient`; `chosen_name` says which it is |
| highest_cosine | √reliability: what the best estimator can be expected to reach |
| estimators | all of them (see horizon_report.py), each with an interval over seeds, per window, over time |
| truth | per window and pathway, with standard errors; below 0: more weight there lowers the final loss |

Reliability is the correlation of the mean truths of two halves of the seeds, its mean over random halvings, corrected
from half to all seeds by Spearman-Brown, 2r / (1 + r). `reliability_in_detail` has it uncorrected, centred over
pathways, over time, per window, with every window at norm 1 (the first steps of a run can outweigh all others), and
with every seed at norm 1 (one seed can outweigh all others). The first steps of a run can be chaotic: then their
derivative has no mean to speak of, more seeds do not help, and --from-step leaves them out.

BatchNorm takes the batch's statistics throughout, in the held-out losses too, as the outer loss of a search does.
The derivative is that of autograd: what a ReLU does to a gradient when it switches is a jump that it does not see.
Held-out images come from the train split (`data.test_on: held-out`); outer images are others. float32, no TF32.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

from horizon_check import LARGEST_ERROR, check
from horizon_report import merge, print_report
from horizon_run import Bench, Settings, run_seed, seed_file

from distpro_cli.errors import DistproError
from distpro_cli.training.device import choose_device


def run_seeds(settings: Settings, seeds: list[int], arguments: argparse.Namespace) -> None:
    """Runs the seeds that are not there yet, some at a time, each in a process of its own."""
    folder: Path = arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    left = [seed for seed in seeds if not seed_file(folder, seed).exists()]
    if not left:
        return
    if settings.teacher is None:
        (folder / "teacher").mkdir(exist_ok=True)
        Bench(replace(settings, steps=1), 0, arguments.device, folder / "teacher").teach()
    with ProcessPoolExecutor(arguments.workers, get_context("spawn"), max_tasks_per_child=1) as pool:
        calls = {
            pool.submit(run_seed, settings, seed, arguments.device, arguments.threads, folder): seed for seed in left
        }
        for done, call in enumerate(as_completed(calls), start=1):
            print(f"seed {calls[call]}: {call.result():.0f} s ({done} of {len(left)})", file=sys.stderr, flush=True)


def numbers(text: str) -> list[int]:
    """Returns the numbers of a text such as `0-15,20`."""
    pairs = [part.partition("-") for part in text.split(",")]
    return [number for first, _, last in pairs for number in range(int(first), int(last or first) + 1)]


def parse() -> argparse.Namespace:
    """Returns the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the recipe, such as search.weight=3")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--device", help="default: the best there is")
    parser.add_argument("--recipe", help="default: cifar10/wrn_16_2-wrn_10_1 where $CIFAR10 is set, else quickstart")
    parser.add_argument("--teacher", metavar="FILE", help="the teacher's weights; default: trained first")
    parser.add_argument("--seeds", type=numbers, default="0-15", help="such as 0-15,20")
    parser.add_argument("--workers", type=int, default=1, help="seeds that run side by side")
    parser.add_argument("--threads", type=int, default=1, help="of each")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--windows", type=int, default=6, help="of time, in the report")
    parser.add_argument("--from-step", type=int, default=0, help="where the report's first window begins")
    parser.add_argument("--horizons", type=numbers, default="10,30", help="steps h, of horizon_h and later_h")
    parser.add_argument("--final-images", type=int, default=2000, help="of the final loss")
    parser.add_argument("--out", type=Path, default=Path("horizon"), help="folder of the results, a file per seed")
    parser.add_argument("--report", action="store_true", help="run nothing, merge what is in --out")
    parser.add_argument("--check", action="store_true", help="compare with finite differences, and end")
    arguments = parser.parse_args()
    for name in ("workers", "threads", "steps", "windows", "final_images"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(arguments, name)}: at least 1")
    if arguments.from_step < 0:
        parser.error(f"--from-step {arguments.from_step}: at least 0")
    if any(h < 1 for h in arguments.horizons):
        parser.error(f"--horizons {min(arguments.horizons)}: at least 1")
    if arguments.teacher is not None and not Path(arguments.teacher).is_file():
        parser.error(f"--teacher {arguments.teacher}: there is no such file")
    return arguments


def main() -> None:
    """Runs what is missing, merges and prints."""
    arguments = parse()
    if arguments.check:
        errors = check()
        json.dump(errors, sys.stdout, indent=2)
        print()
        sys.exit(any(error > LARGEST_ERROR for error in errors.values()))
    default = "cifar10/wrn_16_2-wrn_10_1" if os.environ.get("CIFAR10") else "quickstart"
    settings = Settings(
        arguments.recipe or default,
        tuple(arguments.overrides),
        arguments.teacher,
        arguments.steps,
        tuple(arguments.horizons),
        arguments.final_images,
    )
    try:
        if not arguments.report:
            choose_device(arguments.device)
            run_seeds(settings, arguments.seeds, arguments)
        expected = None if arguments.report else settings.as_json()
        report = merge(arguments.out, arguments.windows, expected, arguments.from_step)
    except DistproError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    if arguments.json:
        json.dump(report, sys.stdout, indent=2)
        print()
    else:
        print_report(report)


if __name__ == "__main__":
    main()
