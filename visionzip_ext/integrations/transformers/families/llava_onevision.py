"""LLaVA-OneVision: tiles and frames by an encoder without CLS."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor

from visionzip_ext.integrations.transformers.families.llava_next import LlavaNextVideoAdapter, TiledCounts
from visionzip_ext.integrations.transformers.processors.checks import (
    check_class,
    check_pinpoints,
    check_size,
    check_token,
)
from visionzip_ext.integrations.transformers.processors.counted_placeholders import CountedPlaceholders
from visionzip_ext.tokens.tiles import Region

_NEWLINE_IS_A_FEATURE = Version(transformers.__version__) >= Version("5.18.0")
"""The newline of a video is among its features; before, `forward` adds it to them."""


@dataclass(frozen=True)
class OnevisionCounts(TiledCounts):
    """Of several images in a prompt, each is shown as its base tile alone."""

    def of_image(self, height: int, width: int, *, alone: bool) -> int:
        """See `TokenCounts`."""
        return super().of_image(height, width, alone=alone) if alone else self.images.tokens(self.images.single())


class LlavaOnevisionAdapter(LlavaNextVideoAdapter):
    """`LlavaOnevisionForConditionalGeneration` and `LlavaOnevisionModel`.

    Tiles are zipped before the projector, and so are frames: before the model's pooling, in its place. The newline that
    closes a video stays. In the native layout a large grid is not scaled down: that made tokens fewer, as zipping does.
    """

    processor_class = "LlavaOnevisionProcessor"
    newlines_of_video = 1

    def image_features(
        self,
        pixel_values: Tensor,
        image_sizes: Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        vision_aspect_ratio: str | None = None,
        batch_num_images: Tensor | None = None,
        *,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Tiles (images, most tiles, 3, height, width) or (tiles, 3, ...) -> a list of (tokens, channels)."""
        alone = [True] * len(image_sizes)
        if batch_num_images is not None:
            alone = [number == 1 for number in map(int, batch_num_images) for _ in range(number)]
        images = [
            self.tiled_image(size) if by_itself else self.images.single()
            for size, by_itself in zip(image_sizes, alone, strict=True)
        ]
        layer = vision_feature_layer, vision_feature_select_strategy
        return self.tiled_features(pixel_values, images, *layer, return_dict=return_dict, **kwargs)

    @property
    def pooled_side(self) -> int:
        """See `LlavaNextVideoAdapter.pooled_side`; this model's pooling rounds up."""
        return math.ceil(self.tower.patches / 2)

    def shown_grid(self, unpadded: Region) -> tuple[int, int]:
        """See `LlavaNextAdapter.shown_grid`; without compression this model scales a large grid down."""
        rows, columns = super().shown_grid(unpadded)
        most_tiles = int(self.base_model.config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(rows * columns / (most_tiles * self.tower.patches**2))
        return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)

    def finished_videos(self, features: Tensor) -> Tensor:
        """See `LlavaNextVideoAdapter.finished_videos`; a newline closes each video."""
        if not _NEWLINE_IS_A_FEATURE:
            return features
        newline: Any = self.base_model.image_newline
        return torch.cat([features, newline.to(features).expand(len(features), 1, -1)], 1)

    def placeholders(self, processor: Any) -> CountedPlaceholders:
        """See `ModelAdapter.placeholders`."""
        config = self.base_model.config
        check_class(processor, self.processor_class)
        if processor.num_image_tokens != self.tower.patches**2:
            raise ValueError(
                f"processor.num_image_tokens is {processor.num_image_tokens}, but the model's vision tower makes "
                f"{self.tower.patches**2} tokens of a tile; take the processor of the same checkpoint"
            )
        check_size(processor, config.vision_config)
        check_pinpoints(processor, config)
        for modality in self.modalities:
            check_token(processor, config, modality)
        return CountedPlaceholders(OnevisionCounts(self.images, self.grids, self.newlines_of_video))
