"""What all tables share: the console, their look, the text of numbers and levels."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from distpro_cli.errors import escaped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

GAP = 2  # characters between two columns
_BARS = "▁▂▃▄▅▆▇█"
_BARS_ASCII = "_.-=+*#@"
_ASCII = str.maketrans({"Δ": "vs", "±": "+-", "≈": "~", "→": "->", "×": "x", "Σ": "sum of"})
_PLAIN_BOX = "\n".join(["    ", "    ", " -- ", *["    "] * 5]) + "\n"  # a rule below the heads, nothing else


def make_console(*, stderr: bool = False) -> Console:
    """Returns a console: 80 columns and no colour when it is no terminal; control characters in texts are escaped."""
    from rich.console import Console
    from rich.text import Text

    class SafeConsole(Console):
        """Every text passes through `render_str`, whether it is printed, a cell, a head or a title."""

        def render_str(self, text: str, **options: Any) -> Text:
            """Renders a text, whose line ends stay."""
            return super().render_str(escaped(text, keep="\n"), **options)

    file = sys.stderr if stderr else sys.stdout
    return SafeConsole(file=file, markup=False, highlight=False, emoji=False)


def say(text: str) -> None:
    """Prints one line to stdout, control characters escaped."""
    print(escaped(text))


def one_line(text: str, most: int = 80) -> str:
    """Returns a text from a file as one short piece of a line: escaped, and cut after `most` characters."""
    text = escaped(text)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def make_table(*columns: str, title: str | None = None) -> Table:
    """Returns a table that begins with these columns of text, without frames, so that it reads as plain text too."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD if _has_bars(sys.stdout.encoding) else box.Box(_PLAIN_BOX, ascii=True),
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
    )
    add_columns(table, *columns)
    return table


def add_columns(table: Table, *names: str, numbers: bool = False) -> None:
    """Adds columns: of text, which folds and is never cut, or of numbers, which never fold."""
    for name in names:
        justify = "right" if numbers else "left"
        table.add_column(name, justify=justify, no_wrap=numbers, overflow="fold")  # type: ignore[arg-type]


def print_table(console: Console, table: Table) -> None:
    """Prints a table between two empty lines."""
    console.print()
    console.print(table)
    console.print()


def print_kinds(console: Console, pathways: Iterable[tuple[str, str, str]]) -> None:
    """Prints which pathways have which transform and distance; `pathways` are of id, transform and distance."""
    kinds: dict[str, list[str]] = {}
    for name, transform, distance in pathways:
        kinds.setdefault(f"transform {transform}, distance {distance}", []).append(name)
    for kind, ids in kinds.items():
        console.print(kind if len(kinds) == 1 else f"{kind}: {', '.join(ids)}")


def sparkline(values: Sequence[float], top: float, encoding: str) -> str:
    """Draws values in [0, top] as one character each; characters that `encoding` has."""
    bars = _BARS if _has_bars(encoding) else _BARS_ASCII
    if top <= 0:
        return bars[0] * len(values)
    return "".join(bars[min(int(value / top * len(bars)), len(bars) - 1)] for value in values)


def _has_bars(encoding: str | None) -> bool:
    return (encoding or "ascii").lower().replace("-", "").startswith("utf")


def encodable(text: str, encoding: str | None) -> str:
    """Returns `text`, in ASCII where `encoding` lacks a character of it."""
    try:
        text.encode(encoding or "ascii")
    except UnicodeEncodeError:
        return text.translate(_ASCII).encode("ascii", "replace").decode()
    return text


def number(value: float) -> str:
    """Writes a weight in about six characters."""
    if value == 0:
        return "0"
    if 0.001 <= abs(value) < 1000:
        return f"{value:.3f}"
    return f"{value:.1e}"


def count(value: float) -> str:
    """Writes a count with a decimal unit: 812, 12.3 k, 4.56 M."""
    return _scaled(value, 1000, ("", " k", " M", " G", " T"))


def size(num_bytes: float) -> str:
    """Writes a number of bytes with a binary unit."""
    return _scaled(num_bytes, 1024, (" B", " KiB", " MiB", " GiB"))


def _scaled(value: float, base: int, units: Sequence[str]) -> str:
    for unit in units:
        if value < base - 0.5 or unit == units[-1]:
            break
        value /= base
    return f"{value:.0f}{unit}" if unit == units[0] else f"{value:.3g}{unit}"


def shape(sizes: Sequence[int], reduction: int | None) -> str:
    """Writes a level's shape and reduction: 64x32x32 /4."""
    return with_reduction("x".join(map(str, sizes)), reduction)


def with_reduction(text: str, reduction: int | None) -> str:
    """Writes how many input pixels a cell of a level has behind what the level is called; vectors have none."""
    return text if reduction is None else f"{text} /{reduction}"
