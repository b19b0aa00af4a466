"""What the demo says: progress while it works, then the tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from types import TracebackType

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from visionzip_ext.demo.measure import Measurement


class Steps:
    """A progress bar on a terminal; a line for each step where there is none.

    Call it with what comes next: the step before is then done.
    """

    def __init__(self, total: int) -> None:
        """Expect `total` steps."""
        # on standard error, so that the tables alone can be piped into a file
        self._console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("", total=total)
        self._begun = False

    def __enter__(self) -> Steps:
        """Show the bar."""
        self._progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Take the bar away."""
        self._progress.stop()

    def __call__(self, description: str) -> None:
        """Begin the next step."""
        if not self._console.is_terminal:
            self._console.print(description, highlight=False, markup=False)
        self._progress.update(self._task, description=escape(description), advance=int(self._begun))
        self._begun = True


def show(console: Console, measurement: Measurement, description: str, where: str, budget: dict[str, int]) -> None:
    """Print what was run, the costs side by side, and the answers.

    Args:
        console: where to.
        measurement: both variants.
        description: of the model.
        where: device, dtype and threads.
        budget: `dominant` and `contextual`.
    """
    console.print()
    console.print(f"[bold]Model[/bold]  {escape(description)}", highlight=False)
    console.print(f"[bold]Ran on[/bold] {escape(where)}", highlight=False)
    console.print()
    console.print(_costs(measurement, budget))
    console.print(_answers(measurement))


def _costs(measurement: Measurement, budget: dict[str, int]) -> Table:
    full, zipped = measurement.full, measurement.zipped
    images, repeats = len(measurement.pixel_values), len(full.encoder_s)
    table = Table(
        title=f"{images} image{'s' if images > 1 else ''}, one forward",
        caption=f"Times: median and range of {repeats} forwards each, full and VisionZip in turn, in this run. "
        "The encoder's includes selection, merging and projector.",
        box=box.SIMPLE_HEAVY,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("", no_wrap=True)
    table.add_column("full", justify="right")
    table.add_column(f"VisionZip {budget['dominant']} + {budget['contextual']}", justify="right", style="bold")
    table.add_column("ratio", justify="right", style="green")
    _add_row(table, "visual tokens an image", [full.visual_tokens], [zipped.visual_tokens], str)
    _add_row(table, "encoder + selection", full.encoder_s, zipped.encoder_s, _seconds)
    _add_row(table, "language model prefill", full.prefill_s, zipped.prefill_s, _seconds)
    _add_row(table, "KV cache", [full.cache_bytes], [zipped.cache_bytes], _bytes)
    return table


def _add_row(
    table: Table, label: str, full: Sequence[float], zipped: Sequence[float], form: Callable[[float], str]
) -> None:
    """A row of medians, with the range below where there are several values."""

    def cell(values: Sequence[float]) -> str:
        spread = f"\n[dim]{form(min(values))} to {form(max(values))}[/dim]" if len(values) > 1 else ""
        return form(statistics.median(values)) + spread

    table.add_row(label, cell(full), cell(zipped), _ratio(full, zipped))


def _ratio(full: Sequence[float], zipped: Sequence[float]) -> str:
    """Of the medians; none where the ranges overlap, because it would say more than was measured."""
    if len(full) > 1 and min(full) <= max(zipped) and min(zipped) <= max(full):
        return "ranges overlap"
    return f"{statistics.median(full) / statistics.median(zipped):.2f} x"


def _answers(measurement: Measurement) -> Table:
    table = Table(title="Generated text", box=box.SIMPLE_HEAVY, title_justify="left")
    table.add_column("image", justify="right")
    table.add_column("full", ratio=1)
    table.add_column("VisionZip", ratio=1)
    for number, texts in enumerate(zip(measurement.full.answers, measurement.zipped.answers, strict=True), start=1):
        table.add_row(str(number), *map(escape, texts))
    return table


def _seconds(value: float) -> str:
    return f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.2f} s"


def _bytes(value: float) -> str:
    return f"{value / 1e6:.1f} MB"
