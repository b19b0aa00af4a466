"""Placeholders of processors that make a grid of patches of each image and video (`image_grid_thw`)."""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import BatchFeature

from visionzip_ext.integrations.transformers.processors.counted_placeholders import (
    ASKS_FOR_EACH,
    PER_TOKEN,
    CountedPlaceholders,
    CountingProcessor,
    fit,
)
from visionzip_ext.tokens.packed_images import PackedFrame


class _CountsGrids(CountingProcessor):
    """Writes what the processor itself would, and leaves as many placeholders of it as each frame's budget says."""

    # the processor's own
    image_token: str
    image_token_id: int
    video_token: str
    video_token_id: int
    tokenizer: Any

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        written = super().replace_image_token(image_inputs, image_idx, **kwargs)  # type: ignore[misc]
        return _shortened(written, self.image_token, self.counts.frames([image_inputs["image_grid_thw"][image_idx]]))

    def replace_video_token(self, video_inputs: dict, video_idx: int, **kwargs: Any) -> str:
        written = super().replace_video_token(video_inputs, video_idx, **kwargs)  # type: ignore[misc]
        return _shortened(written, self.video_token, self.counts.frames([video_inputs["video_grid_thw"][video_idx]]))

    def __call__(self, *args: Any, **kwargs: Any) -> BatchFeature:
        result = super().__call__(*args, **kwargs)  # type: ignore[misc]
        if ASKS_FOR_EACH or "input_ids" not in result:
            return result
        frames = {
            token: self.counts.frames(result[grids])
            for token, grids in ((self.image_token_id, "image_grid_thw"), (self.video_token_id, "video_grid_thw"))
            if result.get(grids) is not None
        }
        _shorten(result, frames, self.tokenizer, keep_width=kwargs.get("padding") == "max_length")
        return result


class GridPlaceholders(CountedPlaceholders):
    """Lets a processor write as many placeholders as `PackedImages` says."""

    counting = _CountsGrids


def _shortened(written: str, token: str, frames: list[PackedFrame]) -> str:
    """A text with placeholders in one run, or in one run a frame with other words between them."""
    runs = list(re.finditer(f"(?:{re.escape(token)})+", written))
    counts = [frame.budget.tokens for frame in frames]
    if len(runs) == 1:
        counts = [sum(counts)]
    parts, end = [], 0
    for run, count in zip(runs, counts, strict=True):
        parts += [written[end : run.start()], token * count]
        end = run.end()
    return "".join([*parts, written[end:]])


def _shorten(result: BatchFeature, frames: dict[int, list[PackedFrame]], tokenizer: Any, *, keep_width: bool) -> None:
    """Leave the first placeholders of each frame, and of everything that has a value for each token likewise.

    For transformers 4, whose processors count inline.
    """
    as_tensor = isinstance(result["input_ids"], torch.Tensor)
    rows = result["input_ids"].tolist() if as_tensor else result["input_ids"]
    left = {
        token: iter([number < frame.budget.tokens for frame in own for number in range(frame.tokens)])
        for token, own in frames.items()
    }
    places = [[place for place, token in enumerate(row) if token not in left or next(left[token])] for row in rows]
    attention = result["attention_mask"]
    width = max(sum(int(mask[place]) for place in kept) for mask, kept in zip(attention, places, strict=True))
    for name in PER_TOKEN:
        if name not in result:
            continue
        filler = tokenizer.pad_token_id if name == "input_ids" else 0
        values = result[name].tolist() if as_tensor else result[name]
        shortened = [[row[place] for place in kept] for row, kept in zip(values, places, strict=True)]
        if as_tensor or keep_width:
            length = len(rows[0]) if keep_width else width
            shortened = [fit(row, length, filler, tokenizer.padding_side) for row in shortened]
        result[name] = torch.tensor(shortened) if as_tensor else shortened
