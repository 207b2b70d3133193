"""Whether a process fits a recipe's pair, pathway by pathway, without data and without training."""

from __future__ import annotations

from functools import partial
from typing import Any

from distpro_cli.errors import ProcessError
from distpro_cli.networks.build import build_network
from distpro_cli.pathways.defaults import ends_with_logits
from distpro_cli.process.fitting import How, other_taps, unfit
from distpro_cli.process.matching import differences
from distpro_cli.process.pathway import LevelInfo, PathwayInfo
from distpro_cli.process.process import SIDES, Process
from distpro_cli.process.trust import check_trusted
from distpro_cli.recipe.schema import Recipe
from distpro_cli.tasks.task import find_task
from distpro_cli.workflows.pairs import match_pair, recipe_for


def explain_fit(process: Process, recipe: Recipe, how: How) -> dict[str, Any]:
    """Builds both networks with random weights and returns what `distpro inspect p.safetensors recipe.yaml` says.

    Returns:
        `fits`; `pathways`, each with `pair`, `process` (ids), `rule`, levels of both sides (`teacher` and `student`,
        `before` and `now`) and in words what else `differs`; `lost`, `left_out` (ids); `says`, what is wrong and
        which flags would allow it; `taps`, where levels are tapped elsewhere.

    Raises:
        ProcessError: the process names Python that the recipe does not; nothing of it was run.
        DistproError: a network or a pathway that the recipe asks for cannot be built.
    """
    if recipe.pathways is None:  # else those of the process are not built
        _check_trusted(process, recipe)
    task = find_task(recipe.task)(recipe, recipe.distill)
    logits = ends_with_logits(recipe_for(process, recipe), task)
    specs = recipe.teacher, recipe.student
    networks = [build_network(spec, recipe.data, task, logits=logits, pretrained_ok=False) for spec in specs]
    find = partial(match_pair, process, recipe, task, networks[0].levels, networks[1].levels)
    match = find(how)
    return {
        **match.values(),
        "fits": match.fits,
        "pathways": [{"rule": match.rule(own, info), **_joined(own, info)} for own, info in match.joined],
        "says": [] if match.fits else unfit(match, find),
        "taps": other_taps(process, match),
    }


def _check_trusted(process: Process, recipe: Recipe) -> None:
    try:
        check_trusted("the process", process, recipe, given=recipe)
    except ProcessError as error:
        remedy = "inspect runs nothing that a process names; to see the match, name it in the recipe's pathways"
        raise ProcessError(*error.lines[:-1], remedy) from None


def _joined(own: PathwayInfo, of_pair: PathwayInfo) -> dict[str, Any]:
    levels = {
        side: {when: _level(getattr(info, side)) for when, info in (("before", own), ("now", of_pair))}
        for side in SIDES
    }
    others = [
        text for key, texts in differences(own, of_pair).items() if key not in ("count", "shape") for text in texts
    ]
    return {"pair": of_pair.id, "process": own.id, **levels, "differs": others}


def _level(level: LevelInfo) -> dict[str, Any]:
    return {
        "number": level.number,
        "name": level.name,
        "kind": level.kind,
        "shape": list(level.shape),
        "reduction": level.reduction,
        "feature": level.feature,
    }
