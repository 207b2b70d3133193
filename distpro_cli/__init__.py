"""distpro from Python: search how a student should be distilled, look at it, distil with it.

    from distpro_cli import distil, load_recipe, search

    recipe = load_recipe("quickstart", "search.epochs=2")
    found = search(recipe)
    found.process.weights            # numpy, [T, K]: one row per moment, one column per pathway
    student = distil(found.process, recipe).student  # a torch.nn.Module

Importing this is light: torch and timm come in when something runs. Errors of the user's are `DistproError`s of
`distpro_cli.errors`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distpro_cli.process.process import Process
    from distpro_cli.recipe.schema import Recipe
    from distpro_cli.runs.context import RunContext
    from distpro_cli.runs.folder import RunFolder
    from distpro_cli.workflows.search import Searched
    from distpro_cli.workflows.transfer import Distilled

__all__ = ["compare", "distil", "edit", "load_process", "load_recipe", "save_process", "search"]


def load_recipe(source: str | Path, *overrides: str) -> Recipe:
    """Loads a recipe.

    Args:
        source: A YAML file, or the name of a shipped recipe such as `quickstart`.
        overrides: `KEY=VALUE` texts, as on the command line.

    Raises:
        RecipeError: everything wrong with it, all at once.
    """
    from distpro_cli.recipe.load import load_recipe as load

    return load(source, overrides)


def load_process(path: str | Path) -> Process:
    """Reads a process, without torch.

    Args:
        path: A `.safetensors` file; else the name of one that ships or lies in ./processes, or
            `hf://owner/repo/file.safetensors`.

    Returns:
        The process; its `weights` and `alpha` are numpy tables [T, K], `pathways` names their columns.

    Raises:
        DistproError: there is none, or it is damaged, of a newer version, or no process.
    """
    from distpro_cli.process.library import load_named

    return load_named(str(path))


def save_process(process: Process, path: str | Path, *, force: bool = False) -> None:
    """Writes a process file; equal processes give equal bytes.

    Args:
        process: What to write.
        path: Where; missing folders are made.
        force: Whether a file that is there may be replaced.

    Raises:
        DistproError: it is there already, or cannot be written.
    """
    from distpro_cli.process.file import save_process as save

    save(process, Path(path), force=force)


def edit(
    *processes: Process,
    table: str | Path | None = None,
    pathways: Sequence[str] | None = None,
    time: tuple[float, float] | None = None,
    smooth: float | None = None,
    factor: float | None = None,
    rows: int | None = None,
) -> Process:
    """Makes a process of one or several, as `distpro edit` does, in the order of the arguments.

    Args:
        processes: Several are averaged.
        table: A `.csv` or `.yaml` as `distpro inspect --export` writes it, whose numbers are taken.
        pathways: Ids of those to keep.
        time: Start and end, in [0, 1], of what is kept and stretched over the whole run.
        smooth: Share of the run over which every entry is averaged.
        factor: By which all weights are multiplied.
        rows: Moments to keep, evenly spread.

    Returns:
        The process, whose `history` says what was done.

    Raises:
        DistproError: a value is out of range, or the processes do not fit each other.
    """
    from distpro_cli.errors import DistproError
    from distpro_cli.process.editing import edit as make
    from distpro_cli.process.tables import read_table

    if not processes:
        raise DistproError("there is no process to edit")
    read = None if table is None else read_table(Path(table))
    return make(processes, table=read, pathways=pathways, time=time, smooth=smooth, factor=factor, rows=rows)


def search(
    recipe: Recipe,
    *,
    output: str | Path | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    device: str | None = None,
    quiet: bool = True,
) -> Searched:
    """Learns a process, as `distpro search` does.

    Args:
        recipe: What to search.
        output: Process file to write; None: none is written, but that of the run folder.
        run_dir: Folder of the run; None: a temporary one, gone when the search is done.
        resume: Whether the run in `run_dir` is continued from its last checkpoint.
        force: Whether what is there may be replaced.
        device: `cpu`, `cuda`, `cuda:N` or `mps`; None: the best there is.
        quiet: Whether nothing is shown on stderr.

    Returns:
        `process`, the `student` trained on the way (a `torch.nn.Module`), and the `summary` that `--json` prints.

    Raises:
        DistproError: anything wrong with the recipe, its data or its networks.
        KeyboardInterrupt: Ctrl-C; with a `run_dir` the run can be resumed.
    """
    from distpro_cli.files import check_writable
    from distpro_cli.workflows.search import search as run

    if output is not None:
        check_writable(Path(output), force=force or resume)
    with _running("search", recipe, run_dir, device, resume=resume, force=force, quiet=quiet) as (folder, context):
        return run(recipe, Path(output) if output is not None else folder.process, folder, context, force=force)


def distil(
    process: Process | str,
    recipe: Recipe | None = None,
    *,
    threshold: float | None = None,
    keep: float | None = None,
    match: str = "level",
    allow: Collection[str] = (),
    trust: bool = False,
    run_dir: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    device: str | None = None,
    quiet: bool = True,
) -> Distilled:
    """Distils a student with a process, as `distpro transfer` does.

    Args:
        process: A process, or the name of a scheme: plain, uniform, kd, hint, attention-transfer, reviewkd,
            reviewkd+kd.
        recipe: The pair to distil; None: the recipe inside the process.
        threshold: Drop what lies below this, alpha scaled to [0, 1].
        keep: Keep only the strongest share of the entries, in (0, 1].
        match: How pathways are matched: exact, level, reduction, depth, or `path/to/file.py:Name` (docs/library.md).
        allow: What may differ: lost, new, count, kind, transform, distance.
        trust: Whether Python that the process names may run, and places that it names may be read, though `recipe`
            does not name them (docs/security.md).
        run_dir: As in `search`; so are `resume`, `force`, `device` and `quiet`.

    Returns:
        The trained `student` (a `torch.nn.Module` in eval mode that takes images normalised by `mean` and `std`),
        those two, and the `summary` that `--json` prints.

    Raises:
        ProcessError: the process does not fit the pair.
        DistproError: anything else wrong with the input.
        KeyboardInterrupt: Ctrl-C; with a `run_dir` the run can be resumed.
    """
    from distpro_cli.errors import DistproError
    from distpro_cli.process.fitting import How
    from distpro_cli.process.trust import check_trusted
    from distpro_cli.recipe.load import parse_recipe
    from distpro_cli.runs.identity import transfer_inputs
    from distpro_cli.workflows.sources import source_of
    from distpro_cli.workflows.transfer import Dropping, transfer

    how = How(match, frozenset(allow))
    source, given = source_of(process, how), recipe
    if recipe is None:
        if isinstance(process, str):
            raise DistproError(f"the scheme {process} names no networks; give a recipe, too")
        recipe = parse_recipe(process.recipe, filename="recipe inside the process")
    if not trust and not isinstance(process, str):
        check_trusted("the process", process, recipe, given=given)
    inputs = transfer_inputs(process, threshold, keep, how)
    options = {"resume": resume, "force": force, "quiet": quiet}
    with _running("transfer", recipe, run_dir, device, inputs=inputs, **options) as (folder, context):
        return transfer(recipe, source, Dropping(threshold, keep), folder, context, how=how)


def compare(
    recipe: Recipe,
    *,
    processes: Mapping[str, Process] | None = None,
    methods: Sequence[str] = ("student", "kd", "uniform", "reviewkd", "process", "process-mean"),
    thresholds: Sequence[float] = (),
    keep: Sequence[float] = (),
    seeds: int = 3,
    trust: bool = False,
    run_dir: str | Path | None = None,
    force: bool = False,
    device: str | None = None,
    quiet: bool = True,
) -> dict[str, Any]:
    """Compares ways to distil a pair under the same data, schedule and epochs, as `distpro compare` does.

    Args:
        recipe: What to distil.
        processes: By label; None: one is searched.
        methods: `student`, names of schemes, `process`, `process-mean` (averaged over time), `online` (a
            search in the run that counts) and its rivals, as `search.method` names them.
        thresholds: Under which each process is run, too.
        keep: Shares of its entries with which each process is run, too.
        seeds: Of every method, from the recipe's on.
        trust: As in `distil`.
        run_dir: Folder of the comparison, whose finished runs are kept; None: a temporary one.
        force: Whether runs that are there are made again.
        device: Where to compute.
        quiet: Whether nothing is shown on stderr.

    Returns:
        What `--json` prints: `methods` with last and best figures, differences to the student alone, costs;
            `verdict`, which of them to use (docs/comparison.md).

    Raises:
        DistproError: anything wrong with the input, found before the first run.
        KeyboardInterrupt: Ctrl-C; with a `run_dir` the comparison can be continued.
    """
    from distpro_cli.process.trust import check_trusted
    from distpro_cli.runs.lock import locked
    from distpro_cli.workflows.compare import Comparison
    from distpro_cli.workflows.methods import make_methods

    for label, process in (processes or {}).items():
        if not trust:
            check_trusted(label, process, recipe, given=recipe)
    compared = make_methods(methods, list((processes or {}).items()), thresholds, keep)
    with _folder(run_dir) as path, locked(path), _context(device, quiet) as context:
        return Comparison(recipe, compared, seeds, path, context, anew=force).summary()


@contextmanager
def _running(
    verb: str,
    recipe: Recipe,
    run_dir: str | Path | None,
    device: str | None,
    *,
    resume: bool,
    force: bool,
    quiet: bool,
    inputs: Mapping[str, Any] | None = None,
) -> Iterator[tuple[RunFolder, RunContext]]:
    from distpro_cli.runs.folder import open_run_folder

    with _folder(run_dir) as path, _context(device, quiet) as context:
        run_folder = open_run_folder(verb, verb, recipe, path, resume=resume, force=force, inputs=inputs)
        try:
            yield run_folder, context
        finally:
            run_folder.close()


@contextmanager
def _folder(run_dir: str | Path | None) -> Iterator[Path]:
    from tempfile import TemporaryDirectory

    if run_dir is not None:
        yield Path(run_dir)
        return
    with TemporaryDirectory(prefix="distpro-") as folder:
        yield Path(folder)


@contextmanager
def _context(device: str | None, quiet: bool) -> Iterator[RunContext]:
    from distpro_cli.report.progress import make_reporter
    from distpro_cli.runs.signals import Interruption
    from distpro_cli.workflows.session import run_context

    with Interruption() as interruption, run_context(device, make_reporter(quiet), interruption) as context:
        yield context
