"""A picture of the decision: which patches the language model still sees, and where the others went."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.colors
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from visionzip_ext.integrations.transformers import ZipDecision

# As far apart as ten colours can be, and none of them grey, as merged patches are before they are tinted.
_TEN = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#f46fc8", "#bcbd22", "#17becf", "#1b1b7a")
_TINT = 0.62  # how much of a merged patch is its target's colour
_SHADE = 0.82  # merged patches stand back a little behind those that were kept
_PANEL_INCHES = 4.6
_DROPPED = (0.12, 0.12, 0.12)
_PAPER, _INK = "#20242b", "white"  # dark, so that white frames show in the legend too


def draw(path: Path, images: np.ndarray, decision: ZipDecision, note: str = "") -> None:
    """Write a PNG with two panels for each image: as the model sees it, and what VisionZip makes of it.

    Args:
        path: the file to write.
        images: (B, height, width, 3) in [0, 1]: the pixels that went into the vision tower.
        decision: of the forward with these images.
        note: a line above the legend.
    """
    count = len(images)
    figure = Figure(figsize=(2 * _PANEL_INCHES, count * _PANEL_INCHES + 0.8), layout="constrained", facecolor=_PAPER)
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(count, 2, squeeze=False)
    patches = decision.grid[0] * decision.grid[1]
    panels[0, 0].set_title(f"what the encoder sees: {patches} patches", color=_INK)
    panels[0, 1].set_title(
        f"what the language model sees: {decision.dominant + decision.contextual} tokens", color=_INK
    )
    for row, image, rows_of_tokens in zip(panels, images, decision.assignment.cpu().numpy(), strict=True):
        _panel(row[0], image)
        _zipped_panel(row[1], image, rows_of_tokens[int(decision.has_cls) :].reshape(decision.grid), decision)
    legend = figure.legend(
        handles=_legend(decision),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=9,
        labelcolor=_INK,
        title=note or None,
        title_fontsize=9,
    )
    legend.get_title().set_color("lightgrey")
    figure.savefig(path, dpi=130)


def pixels_to_images(pixel_values: torch.Tensor, mean: list[float], std: list[float]) -> np.ndarray:
    """Undo the normalisation of an image processor: (B, 3, height, width) -> (B, height, width, 3) in [0, 1]."""
    channels_last = pixel_values.float().cpu().permute(0, 2, 3, 1).numpy()
    return np.clip(channels_last * np.asarray(std) + np.asarray(mean), 0, 1)


def _panel(axes: Axes, image: np.ndarray) -> None:
    axes.imshow(image, interpolation="lanczos", extent=(0, image.shape[1], image.shape[0], 0))
    axes.set_axis_off()


def _zipped_panel(axes: Axes, image: np.ndarray, token_of: np.ndarray, decision: ZipDecision) -> None:
    """`token_of` (rows, columns): the output row of each patch, as in `ZipDecision.assignment`."""
    height, width = image.shape[0] // token_of.shape[0], image.shape[1] // token_of.shape[1]
    colours = _colours(decision.contextual)
    shown = image[: height * token_of.shape[0], : width * token_of.shape[1]].copy()
    targets = _targets(token_of, decision)
    for (row, column), token in np.ndenumerate(token_of):
        cell = shown[row * height : (row + 1) * height, column * width : (column + 1) * width]
        corner = (column * width, row * height)
        if 0 <= token < decision.dominant:
            axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="white", linewidth=1.1, zorder=2))
            continue
        colour = colours[token - decision.dominant] if token >= 0 else _DROPPED
        grey = cell.mean(-1, keepdims=True)
        cell[:] = _SHADE * ((1 - _TINT) * grey + _TINT * np.asarray(colour))
        if (row, column) in targets:
            axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="black", linewidth=1.6, zorder=3))
    _panel(axes, shown)


def _targets(token_of: np.ndarray, decision: ZipDecision) -> set[tuple[int, int]]:
    """The patches that others were merged into: every step-th of those that were not kept, in raster order."""
    if decision.contextual == 0:
        return set()
    rest = np.argwhere(token_of >= decision.dominant)
    step = max(1, len(rest) // decision.contextual)
    return {tuple(place) for place in rest[::step][: decision.contextual].tolist()}


def _colours(count: int) -> np.ndarray:
    """(count, 3) colours, told apart as well as that many can be."""
    if count <= len(_TEN):
        return np.asarray([mpl.colors.to_rgb(colour) for colour in _TEN[:count]])
    return mpl.colormaps["hsv"](np.linspace(0, 1, count, endpoint=False))[:, :3]


def _legend(decision: ZipDecision) -> list[Patch]:
    keeps_cls = decision.has_cls and decision.keep_cls
    cls = " and CLS" if keeps_cls else ""
    kept = decision.dominant - int(keeps_cls)
    handles = [
        Patch(facecolor="none", edgecolor="white", linewidth=1.5, label=f"white frame: {kept} patches kept{cls}")
    ]
    if decision.contextual == 0:
        return [*handles, Patch(facecolor=_DROPPED, label="dark: dropped")]
    colour = _colours(decision.contextual)[0]
    return [
        *handles,
        Patch(facecolor=colour, label=f"tinted: merged, a colour for each of {decision.contextual} tokens"),
        Patch(facecolor=colour, edgecolor="black", linewidth=1.5, label="black frame: merged into this one"),
    ]
