"""What is printed: by rich where it is installed, as plain text where it is not."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

try:
    from rich import box
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table as RichTable
except ImportError:
    Console = None

T = TypeVar("T")

NARROWEST = 160  # columns, in a file or a pipe


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str


def plain(table: Table) -> str:
    """The table with spaces between its columns, the first aligned to the left."""
    lines = [table.columns, *table.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.columns))]

    def text(line: Sequence[str]) -> str:
        numbers = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        return "  ".join([line[0].ljust(widths[0]), *numbers]).rstrip()

    return "\n".join(["", text(table.columns), *(text(row) for row in table.rows), f"({table.caption})", ""])


class Terminal:
    """Where a program talks to its user."""

    def __init__(self) -> None:
        self._console = Console(width=None if sys.stdout.isatty() else NARROWEST) if Console else None

    def say(self, text: str, style: str = "") -> None:
        """A line."""
        if self._console:
            self._console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def show(self, table: Table) -> None:
        """A table."""
        if not self._console:
            print(plain(table), flush=True)
            return
        out = RichTable(box=box.SIMPLE, caption=table.caption)
        out.add_column(table.columns[0], no_wrap=True)
        for column in table.columns[1:]:
            out.add_column(column, justify="right")
        for row in table.rows:
            out.add_row(*row)
        self._console.print(out)

    def progress(self, items: Sequence[T]) -> Iterator[T]:
        """The items one after another, their `name` shown: a bar in a terminal, else a line for each."""
        if not (self._console and self._console.is_terminal):
            for number, item in enumerate(items, 1):
                self.say(f"[{number}/{len(items)}] {item.name}")
                yield item
            return
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task("", total=len(items))
            for item in items:
                progress.update(task, description=item.name)
                yield item
                progress.advance(task)
