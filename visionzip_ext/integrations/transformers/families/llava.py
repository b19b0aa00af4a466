"""LLaVA-1.5 and ViP-LLaVA: one image, one tile; ViP-LLaVA takes its features from several layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import ProcessorMixin

from visionzip_ext.integrations.transformers.families.llava_like import LlavaLikeAdapter
from visionzip_ext.integrations.transformers.processors.checks import (
    check_class,
    check_patches,
    check_size,
    check_token,
)
from visionzip_ext.integrations.transformers.processors.placeholders import AdditionalImageTokens


class OneTileAdapter(LlavaLikeAdapter):
    """For models whose processor is a `LlavaProcessor`: an image is one tile."""

    def placeholders(self, processor: ProcessorMixin) -> AdditionalImageTokens:
        """See `ModelAdapter.placeholders`."""
        config = self.base_model.config
        check_class(processor, "LlavaProcessor")
        check_patches(processor, config.vision_config)
        check_size(processor, config.vision_config)
        check_token(processor, config, "image")
        uncompressed = self.tower.encoder_tokens - self.left_out
        return AdditionalImageTokens(self.budget.tokens, uncompressed, self.tower.patches**2)


class LlavaAdapter(OneTileAdapter):
    """`LlavaForConditionalGeneration` and `LlavaModel`. Tokens are zipped between tower and projector."""

    def image_features(
        self,
        pixel_values: Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        image_sizes: Tensor | None = None,
        *,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Images (B, 3, height, width) -> a list of (dominant + contextual, channels), projected."""
        if image_sizes is not None:
            raise ValueError(f"image_sizes is only for towers that pack images; {self.tower.name} takes one size")
        encoded = self.encode(self.tower, pixel_values, vision_feature_layer, vision_feature_select_strategy, **kwargs)
        return self.as_returned(list(self.zip_images(encoded)), encoded, return_dict)


class VipLlavaAdapter(OneTileAdapter):
    """`VipLlavaForConditionalGeneration`: the deepest of its layers decides, the concatenation of all is zipped."""

    def image_features(
        self,
        pixel_values: Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_layers: int | list[int] | None = None,
        *,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Images (B, 3, height, width) -> (B, dominant + contextual, channels), projected."""
        layers = vision_feature_layer if vision_feature_layers is None else vision_feature_layers
        encoded = self.encode(self.tower, pixel_values, layers, **kwargs)
        return self.as_returned(self.zip_images(encoded), encoded, return_dict)
