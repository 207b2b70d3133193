"""distpro doctor: what is installed here, what it can compute on, whether a small search runs, what costs how much."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from distpro_cli.commands.options import Json
from distpro_cli.commands.running import print_json
from distpro_cli.errors import DistproError, first_line
from distpro_cli.files import cache_folder

PACKAGES = ("distpro-cli", "torch", "torchvision", "timm", "numpy", "safetensors", "pydantic", "typer", "rich")
TINY_RECIPE = """\
data: {name: digits, image_size: 16, train_images: 200, test_images: 100, workers: 0, augment: {crop: pad, flip: 0.0}}
teacher: {name: wrn_10_1, train: {epochs: 1, batch_size: 50}}
student: {name: wrn_10_1}
pathways: [{connections: same, transform: conv1, distance: hcl}]
search: {epochs: 1}
distill: {epochs: 1, batch_size: 50, optimizer: {lr: 0.05}}
"""
_SIZE_SECONDS = 2.0  # spent on adding up the files of one cache


def doctor(
    device: Annotated[
        str | None, typer.Option("--device", help="Where the self-test and --calibrate run; default: the best.")
    ] = None,
    test: Annotated[bool, typer.Option("--test/--no-test", help="Whether the self-test runs: some seconds.")] = True,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Measure what moving bytes, arithmetic and starting an operation cost on the device, some seconds, "
            "and keep it in the cache: inspect and compare estimate costs by it from then on. Best while nothing else "
            "runs.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Show versions, devices, caches and whether a tiny search runs: what to paste into an issue."""
    report = examine()
    if test and not report["problems"]:
        report["self_test"] = self_test(device)
        if "error" in report["self_test"]:
            report["problems"].append(f"self-test: {report['self_test']['error']}")
    if calibrate and not report["problems"]:
        report["calibration"] = measure(device)
        if "error" in report["calibration"]:
            report["problems"].append(f"calibration: {report['calibration']['error']}")
    if json:
        print_json(report)
    else:
        _print(report)
    if report["problems"]:
        raise DistproError(*report["problems"])


def examine() -> dict[str, Any]:
    """Returns what is here, as plain values; `problems` lists in words what keeps distpro from running."""
    report: dict[str, Any] = {
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": {name: _version(name) for name in PACKAGES},
        "cpu": {"cores": os.cpu_count(), "memory_bytes": _memory()},
        "open_files": _open_files(),
        "devices": [],
        "problems": [],
    }
    broken = {}
    for name in ("torch", "torchvision", "timm"):
        try:
            with redirect_stdout(sys.stderr):
                import_module(name)
        except Exception as error:  # a torchvision that does not fit raises RuntimeError
            broken[name] = f"{type(error).__name__}: {first_line(error)}"
    report["imports"] = {name: broken.get(name, "fine") for name in ("torch", "torchvision", "timm")}
    if "torch" in broken:
        report["problems"].append(f"torch cannot be imported ({broken['torch']}); fix: pip install --upgrade torch")
    elif "torchvision" in broken:
        fix = "pip install --upgrade --force-reinstall torch torchvision"
        report["problems"].append(f"torchvision does not fit torch ({broken['torchvision']}); fix: {fix}")
    elif "timm" in broken:
        report["problems"].append(f"timm cannot be imported ({broken['timm']}); fix: pip install --upgrade timm")
    if "torch" not in broken:
        report["devices"] = _devices()
    report["caches"] = _caches()
    return report


def self_test(device: str | None) -> dict[str, Any]:
    """Runs a tiny search on the digits, its teacher trained first, and leaves nothing behind.

    Args:
        device: As `--device`; None: the best.

    Returns:
        `seconds` and the `device`, or an `error`.
    """
    start = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="distpro-doctor-") as folder, _cache_in(folder):
            from distpro_cli.recipe.load import parse_recipe
            from distpro_cli.report.progress import Reporter
            from distpro_cli.runs.folder import open_run_folder
            from distpro_cli.runs.signals import Interruption
            from distpro_cli.training.device import describe_device
            from distpro_cli.workflows.search import search
            from distpro_cli.workflows.session import run_context

            recipe = parse_recipe(TINY_RECIPE, filename="self-test")
            run = open_run_folder("search", "self-test", recipe, Path(folder) / "run", resume=False, force=False)
            with run_context(device, Reporter(), Interruption()) as context, redirect_stdout(sys.stderr):
                search(recipe, run.process, run, context, force=False)
                run.close()
                shown = describe_device(context.device)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {first_line(error)}"}
    return {"seconds": round(time.monotonic() - start, 1), "device": shown}


def measure(device: str | None) -> dict[str, Any]:
    """Measures what operations cost on a device, in every precision that it computes in, and keeps it in the cache.

    Args:
        device: As `--device`; None: the best.

    Returns:
        The `file` it is kept in, the `kind` of device, and what was found by precision (see `Calibration`), or an
        `error`.
    """
    try:
        from distpro_cli.costs.calibration import calibrate
        from distpro_cli.costs.machines import PRECISIONS, keep_calibrations
        from distpro_cli.training.device import choose_device, describe_device

        chosen = choose_device(device)
        precisions = [name for name in PRECISIONS if name == "float32" or _bfloat16(str(chosen))]
        found = {name: calibrate(chosen, name, describe_device(chosen)) for name in precisions}
        path = keep_calibrations(chosen.type, found)
    except DistproError as error:
        return {"error": first_line(error)}
    except Exception as error:  # such as memory that is full
        return {"error": f"{type(error).__name__}: {first_line(error)}"}
    return {"file": str(path), "kind": chosen.type, **{name: asdict(one) for name, one in found.items()}}


@contextmanager
def _cache_in(folder: str) -> Iterator[None]:
    before = os.environ.get("DISTPRO_CACHE")
    os.environ["DISTPRO_CACHE"] = folder
    try:
        yield
    finally:
        del os.environ["DISTPRO_CACHE"]
        if before is not None:
            os.environ["DISTPRO_CACHE"] = before


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _memory() -> int | None:
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def _open_files() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _devices() -> list[dict[str, Any]]:
    """Returns every device with its name, memory and whether it computes in bfloat16; the best one first."""
    import torch

    found: list[dict[str, Any]] = []
    with contextlib.suppress(Exception):  # a driver that does not fit
        for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            free, total = torch.cuda.mem_get_info(index)
            major, minor = torch.cuda.get_device_capability(index)
            facts = {"device": f"cuda:{index}", "name": torch.cuda.get_device_name(index), "memory_bytes": total}
            facts |= {"free_bytes": free, "capability": f"{major}.{minor}", "bfloat16": _bfloat16(f"cuda:{index}")}
            found.append(facts | {"driver": _driver(), "cuda": torch.version.cuda})
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "name": platform.processor() or "Apple", "bfloat16": _bfloat16("mps")})
    found.append({"device": "cpu", "threads": torch.get_num_threads(), "bfloat16": _bfloat16("cpu")})
    return found


def _bfloat16(device: str) -> bool:
    import torch

    try:
        ones = torch.ones(8, 8, device=device)
        with torch.autocast(device.partition(":")[0], dtype=torch.bfloat16):
            return float((ones @ ones).sum()) == 512
    except Exception:
        return False


def _driver() -> str | None:
    """Returns the version of NVIDIA's driver, where the system tells it."""
    with contextlib.suppress(OSError, IndexError):
        words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0].split()
        return next((word for word in words if word[0].isdigit() and word.count(".") >= 1), None)
    program = shutil.which("nvidia-smi")
    if program is not None:
        import subprocess

        with contextlib.suppress(OSError, subprocess.SubprocessError):
            query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
            done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
            lines = done.stdout.splitlines()
            return lines[0] if lines else None
    return None


def _caches() -> list[dict[str, Any]]:
    places = {"trained teachers": cache_folder(), "pretrained weights and data": _hub_cache()}
    places["temporary files"] = Path(tempfile.gettempdir())
    if Path("/dev/shm").is_dir():
        places["shared memory"] = Path("/dev/shm")
    caches = []
    for name, path in places.items():
        there = next((parent for parent in (path, *path.parents) if parent.exists()), Path("/"))
        entry: dict[str, Any] = {"name": name, "path": str(path), "writable": os.access(there, os.W_OK)}
        if name not in ("temporary files", "shared memory"):
            entry["bytes"], entry["complete"] = _size(path)
        with contextlib.suppress(OSError):
            entry["free_bytes"] = shutil.disk_usage(there).free
        caches.append(entry)
    return caches


def _hub_cache() -> Path:
    if named := os.environ.get("HF_HUB_CACHE"):
        return Path(named).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    return Path(home).expanduser() / "hub"


def _size(folder: Path) -> tuple[int, bool]:
    """Returns the bytes of the files below, and whether all were counted in the time given."""
    total, deadline = 0, time.monotonic() + _SIZE_SECONDS
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(parent) / name).lstat().st_size
        if time.monotonic() > deadline:
            return total, False
    return total, True


def _print(report: Mapping[str, Any]) -> None:
    from distpro_cli.report.terminal import say, size

    say(f"python      {report['python']}")
    say(f"system      {report['system']}")
    say("packages    " + ", ".join(f"{name} {found or 'missing'}" for name, found in report["versions"].items()))
    for name, state in report["imports"].items():
        if state != "fine":
            say(f"            {name} cannot be imported: {state}")
    cpu = report["cpu"]
    memory = "" if cpu["memory_bytes"] is None else f", {size(cpu['memory_bytes'])} of memory"
    say(f"machine     {cpu['cores']} cores{memory}, {report['open_files']} open files at most")
    for one in report["devices"]:
        facts = [one["device"], *([one["name"]] if "name" in one else [f"{one['threads']} threads"])]
        if "memory_bytes" in one:
            facts += [f"{size(one['memory_bytes'])} ({size(one['free_bytes'])} free)", f"driver {one['driver']}"]
            facts += [f"CUDA {one['cuda']}", f"compute capability {one['capability']}"]
        say(f"device      {', '.join(facts)}, bfloat16 {'yes' if one['bfloat16'] else 'no'}")
    for cache in report["caches"]:
        used = f", {size(cache['bytes'])}{'' if cache['complete'] else ' or more'} used" if "bytes" in cache else ""
        free = f", {size(cache['free_bytes'])} free" if "free_bytes" in cache else ""
        say(f"{cache['name']}: {cache['path']}{used}{free}{'' if cache['writable'] else ', not writable'}")
    if "error" not in report.get("self_test", {"error": ""}):
        say(f"self-test   passed in {report['self_test']['seconds']} s on {report['self_test']['device']}")
    if "error" not in report.get("calibration", {"error": ""}):
        _print_calibration(report["calibration"])


def _print_calibration(found: Mapping[str, Any]) -> None:
    from distpro_cli.costs.machines import PRECISIONS
    from distpro_cli.process.machine import BUILT_IN
    from distpro_cli.report.terminal import say, size

    for name in (name for name in PRECISIONS if name in found):
        one, margin = found[name], 12 * " "
        say(f"calibration {one['device']}, {name} (built-in constants in brackets)")
        flops = f"{one['flops_per_byte']:.3g} ({BUILT_IN.flops_per_byte:g})"
        say(f"{margin}floating-point operations while a byte is moved: {flops}")
        slower = f"{one['backward_factor']:.3g} ({BUILT_IN.backward_factor:g})"
        say(f"{margin}a convolution's products in the backward pass over those in the forward pass: {slower}")
        started = f"{size(one['operation_bytes'])} ({size(BUILT_IN.operation_bytes)})"
        say(f"{margin}bytes moved while an operation starts: {started}")
        errors = f"{100 * one['median_error']:.0f} % (median), {100 * one['worst_error']:.0f} % (worst)"
        say(f"{margin}error with which these constants tell the times measured: {errors}")
    say(f"kept in {found['file']}; inspect and compare estimate costs by it")
