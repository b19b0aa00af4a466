"""Idefics3 and SmolVLM: tiles between row and column tokens, and the whole image; SmolVLM's videos by frames."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from visionzip_ext.integrations.transformers.families.grouped_like import GroupedAdapter
from visionzip_ext.integrations.transformers.processors.checks import check_token


class Idefics3Adapter(GroupedAdapter):
    """`Idefics3ForConditionalGeneration` and `Idefics3Model`: the tokens that pixel shuffle makes are zipped."""

    tower_name = "vision_model"
    language_model = "text_model"
    projector = "connector.modality_projection"
    projectors = ("connector",)
    processor_class = "Idefics3Processor"
    tokens_attribute = "image_seq_len"

    @property
    def side(self) -> int:
        """See `GroupedAdapter`."""
        return self.base_model.config.scale_factor

    def image_features(self, pixel_values: Tensor, pixel_attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """See `GroupedAdapter`; (rows, most tiles, 3, height, width), where tiles that fill up a row are hidden whole.

        Raises:
            ValueError: a part of a tile is hidden.
        """
        if pixel_attention_mask is not None:
            shown = pixel_attention_mask.flatten(2).bool()
            if bool((shown.any(-1) != shown.all(-1)).any()):
                raise ValueError(
                    "pixel_attention_mask hides a part of a tile; VisionZip expects whole tiles, which the processor "
                    "makes with do_resize=True and do_image_splitting either way"
                )
        return super().image_features(pixel_values, pixel_attention_mask, **kwargs)

    def check_processor(self, processor: Any) -> None:
        """See `GroupedAdapter`."""
        config = self.base_model.config
        size, expected = processor.image_processor.max_image_size["longest_edge"], config.vision_config.image_size
        if size != expected:
            raise ValueError(
                f"the processor makes tiles of {size} pixels a side (max_image_size), the model's vision tower takes "
                f"{expected}; take the processor of the same checkpoint"
            )
        check_token(processor, config, "image")


class SmolVLMAdapter(Idefics3Adapter):
    """`SmolVLMForConditionalGeneration` and `SmolVLMModel`: frames of videos are tiles as well."""

    processor_class = "SmolVLMProcessor"
