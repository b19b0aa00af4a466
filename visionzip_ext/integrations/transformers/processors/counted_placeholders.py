"""Placeholders whose number depends on the image or video: the processor instance gets a class that counts them.

The class is made from the instance's own, which is not touched, and has its name: `save_pretrained` writes what it
would write for the original.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from typing import Any

import torch
from transformers import BatchFeature, ProcessorMixin

from visionzip_ext.integrations.transformers.processors.placeholders import PlaceholderChange

_COUNTS = "_visionzip_counts"
_PIXELS = ("pixel_values", "pixel_values_images")
PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")

# transformers of 2026 asks a processor for each image's and video's placeholders; before, some were counted inline.
ASKS_FOR_EACH = hasattr(ProcessorMixin, "replace_video_token")


class TokenCounts(ABC):
    """How many visual tokens a compressed model makes. Plain data, which is copied with the processor."""

    @abstractmethod
    def of_image(self, height: int, width: int, *, alone: bool) -> int:
        """Of an image of so many pixels; alone: the only one of its prompt."""

    @abstractmethod
    def of_video(self, frames: int) -> int:
        """Of a video of so many frames."""


class CountedPlaceholders(PlaceholderChange):
    """Lets a processor write `counts` placeholders.

    Attributes:
        counting: what goes before the processor's own class.
    """

    counting: type

    def __init__(self, counts: Any) -> None:
        """See the class; `counts` are plain data, which `counting` reads."""
        self._counts = counts

    def do(self, processor: Any) -> None:
        """Give the instance the counting class."""
        setattr(processor, _COUNTS, self._counts)
        processor.__class__ = _counting(self.counting, processor.__class__)

    def undo(self, processor: Any) -> None:
        """Give it its own class back."""
        processor.__class__ = type(processor)._visionzip_original
        delattr(processor, _COUNTS)


@functools.cache
def _counting(counting: type, processor_class: Any) -> Any:
    """The counting class that goes with a processor's own; one object a class."""
    own = {"_visionzip_counting": counting, "_visionzip_original": processor_class}
    return type(processor_class.__name__, (counting, processor_class), own)


def _of_class(counting: type, processor_class: type) -> Any:
    """An empty instance, for unpickling: the counting class has no name that pickle would find."""
    together = _counting(counting, processor_class)
    return together.__new__(together)


class CountingProcessor:
    """Overrides what a processor asks when it counts placeholders; goes before the processor's own class.

    Attributes:
        _visionzip_counting: the class that overrides, one of those that come from this one.
        _visionzip_original: the processor's own class.
    """

    _visionzip_counting: type
    _visionzip_original: type

    def __reduce__(self) -> tuple:
        """A pickle names the two classes that it is made of."""
        return _of_class, (self._visionzip_counting, self._visionzip_original), self.__dict__.copy()

    @property
    def counts(self) -> Any:
        """What `CountedPlaceholders` was given."""
        return getattr(self, _COUNTS)


class _CountsPlaceholders(CountingProcessor):
    """Of images and videos whose size in pixels says how many tokens they become."""

    # the processor's own
    image_token: str
    image_token_id: int
    video_token: str
    video_token_id: int
    vision_feature_select_strategy: str
    tokenizer: Any

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        if (sizes := image_inputs.get("image_sizes")) is not None:
            size = sizes[image_idx]
        else:  # under its old name or its new one
            size = next(image_inputs[name] for name in _PIXELS if name in image_inputs)[image_idx].shape[-2:]
        alone = _is_alone(image_inputs.get("batch_num_images"), image_idx)
        return self.image_token * self._count_image(size, alone=alone)

    def replace_video_token(self, video_inputs: dict, video_idx: int, **kwargs: Any) -> str:
        return self.video_token * self.counts.of_video(len(video_inputs["pixel_values_videos"][video_idx]))

    def _count_image(self, size: Any, *, alone: bool) -> int:
        height, width = (int(pixels) for pixels in size)
        return self.counts.of_image(height, width, alone=alone)

    def _get_number_of_features(self, orig_height: int, orig_width: int, height: int, width: int) -> int:
        """One more where the caller takes CLS off."""
        tokens = self._count_image((orig_height, orig_width), alone=True)
        return tokens + (self.vision_feature_select_strategy == "default")

    def _expand_image_tokens(
        self, text: list[str], image_sizes: Any, height: int, width: int, special_token: str, batch_num_images: Any
    ) -> tuple[list[str], int]:
        """LLaVA-OneVision's, before processors were asked for each image."""
        expanded, most = [], 0
        for sample in text:
            parts = sample.split(special_token)
            alone = len(parts) == 1 or next(batch_num_images) == 1
            counts = [self._count_image(next(image_sizes), alone=alone) for _ in parts[1:]]
            most = max(most, *counts, 0)
            rest = (special_token * count + part for count, part in zip(counts, parts[1:], strict=True))
            expanded.append(parts[0] + "".join(rest))
        return expanded, most

    def __call__(self, *args: Any, **kwargs: Any) -> BatchFeature:
        result = super().__call__(*args, **kwargs)  # type: ignore[misc]  # of the class that comes after this one
        if ASKS_FOR_EACH or "input_ids" not in result:
            return result
        keep_width = kwargs.get("padding") == "max_length"
        resize = functools.partial(_resize, result, tokenizer=self.tokenizer, keep_width=keep_width)
        if (videos := result.get("pixel_values_videos")) is not None:
            resize(self.video_token_id, len(videos), self.counts.of_video(len(videos[0])))
        if (images := result.get("pixel_values_images")) is not None:
            resize(self.image_token_id, len(images), self._count_image(images[0].shape[-2:], alone=True))
        return result


CountedPlaceholders.counting = _CountsPlaceholders


def _is_alone(batch_num_images: Any, image_idx: int) -> bool:
    """Whether an image, counted through a whole batch, is the only one of its prompt."""
    if batch_num_images is None:
        return True
    for number in map(int, batch_num_images):
        if image_idx < number:
            return number == 1
        image_idx -= number
    return True


def _resize(result: BatchFeature, token_id: int, values: int, count: int, tokenizer: Any, *, keep_width: bool) -> None:
    """Give each of so many images or videos, which all had the same number of placeholders, `count` of them.

    Everything that has a value for each token is resized alike, and padded again.
    """
    as_tensor = isinstance(result["input_ids"], torch.Tensor)
    per_token = {name: result[name].tolist() if as_tensor else result[name] for name in PER_TOKEN if name in result}
    rows = per_token["input_ids"]
    written = sum(row.count(token_id) for row in rows) // values
    places = [_places(row, token_id, written, count) for row in rows]
    attended = zip(per_token["attention_mask"], places, strict=True)
    lengths = [sum(mask[place] for place in of_row) for mask, of_row in attended]
    if as_tensor or keep_width:
        width = max(lengths)
        lengths = [max(width, len(rows[0])) if keep_width else width] * len(rows)
    for name, values_of_rows in per_token.items():
        filler = tokenizer.pad_token_id if name == "input_ids" else 0
        resized = [
            fit([row[place] for place in of_row], length, filler, tokenizer.padding_side)
            for row, of_row, length in zip(values_of_rows, places, lengths, strict=True)
        ]
        result[name] = torch.tensor(resized) if as_tensor else resized


def _places(row: list[int], token_id: int, written: int, count: int) -> list[int]:
    """Where the resized row's tokens come from: of `written` placeholders in turn, `count` are left or made."""
    places, seen = [], 0
    for place, token in enumerate(row):
        if token != token_id:
            places.append(place)
            continue
        number = seen % written
        if number < count:
            places.append(place)
        if number == written - 1:
            places += [place] * (count - written)
        seen += 1
    return places


def fit(row: list, width: int, filler: Any, padding_side: str) -> list:
    """Cut padding off, or add some."""
    missing = width - len(row)
    if padding_side == "left":
        return [filler] * missing + row if missing >= 0 else row[-missing:]
    return row + [filler] * missing if missing >= 0 else row[:width]
