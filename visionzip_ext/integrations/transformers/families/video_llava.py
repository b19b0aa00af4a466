"""Video-LLaVA: two towers, one for images and one for the frames of videos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import ProcessorMixin

from visionzip_ext.integrations.transformers.families.llava_like import LlavaLikeAdapter
from visionzip_ext.integrations.transformers.image_features import RETURNS_OUTPUT_OBJECT
from visionzip_ext.integrations.transformers.processors.checks import (
    check_class,
    check_patches,
    check_size,
    check_token,
)
from visionzip_ext.integrations.transformers.processors.counted_placeholders import CountedPlaceholders, TokenCounts
from visionzip_ext.tokens.budget import Budget


@dataclass(frozen=True)
class FrameCounts(TokenCounts):
    """Of images and frames of one size."""

    budget: Budget
    frame_tokens: int

    def of_image(self, height: int, width: int, *, alone: bool) -> int:
        """See `TokenCounts`."""
        return self.budget.tokens

    def of_video(self, frames: int) -> int:
        """See `TokenCounts`."""
        return sum(frame.tokens for frame in self.budget.of_tiles(frames, self.frame_tokens))


class VideoLlavaAdapter(LlavaLikeAdapter):
    """`VideoLlavaForConditionalGeneration` and `VideoLlavaModel`: each frame is zipped between tower and projector."""

    tower_names = ("image_tower", "video_tower")

    @property
    def feature_methods(self) -> dict[str, Callable[..., Any]]:
        """See `ModelAdapter.feature_methods`."""
        return {**super().feature_methods, "get_video_features": self.video_features}

    def image_features(
        self,
        pixel_values: Tensor | None = None,
        pixel_values_images: Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        *,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Images (B, 3, height, width) -> (B, dominant + contextual, channels), projected."""
        images: Any = pixel_values if pixel_values_images is None else pixel_values_images
        encoded = self.encode(self.tower, images, vision_feature_layer, vision_feature_select_strategy, **kwargs)
        return self.as_returned(self.zip_images(encoded), encoded, return_dict)

    def video_features(
        self,
        pixel_values_videos: Tensor,
        vision_feature_layer: int | list[int] | None = None,
        *,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Videos (B, frames, 3, height, width) -> (B, tokens of a video, channels), projected."""
        tower = self.towers["video_tower"]
        features, encoded = self.zip_videos(tower, pixel_values_videos, vision_feature_layer, None, **kwargs)
        result = features if RETURNS_OUTPUT_OBJECT else (features, pixel_values_videos.shape[1])
        return self.as_returned(result, encoded, return_dict)

    def placeholders(self, processor: ProcessorMixin) -> CountedPlaceholders:
        """See `ModelAdapter.placeholders`."""
        config = self.base_model.config
        check_class(processor, "VideoLlavaProcessor")
        check_patches(processor, config.vision_config)
        check_size(processor, config.vision_config)
        for modality in ("image", "video"):
            check_token(processor, config, modality)
        return CountedPlaceholders(FrameCounts(self.budget, self.tile_tokens))
