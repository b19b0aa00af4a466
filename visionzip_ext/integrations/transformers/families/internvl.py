"""InternVL, by transformers' own classes: tiles and a thumbnail, and frames, which the model takes alike."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from visionzip_ext.integrations.transformers.families.grouped_like import GroupedAdapter
from visionzip_ext.integrations.transformers.processors.checks import check_size, check_token


class InternVLAdapter(GroupedAdapter):
    """`InternVLForConditionalGeneration` and `InternVLModel`: the tokens that pixel shuffle makes are zipped."""

    processor_class = "InternVLProcessor"

    @property
    def layer(self) -> int:
        """See `GroupedAdapter`.

        Raises:
            ValueError: several layers, of which the model could not project the concatenation.
        """
        layer = self.base_model.config.vision_feature_layer
        if not isinstance(layer, int):
            raise ValueError(f"vision_feature_layer={layer} is not one layer; set model.config.vision_feature_layer")
        return layer

    @property
    def side(self) -> int:
        """See `GroupedAdapter`."""
        return round(1 / self.base_model.config.downsample_ratio)

    def image_features(
        self,
        pixel_values: Tensor,
        vision_feature_layer: int | None = None,
        vision_feature_select_strategy: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """See `GroupedAdapter`; (tiles, 3, height, width).

        Raises:
            ValueError: another layer than the model was compressed for.
        """
        if vision_feature_layer is not None:
            self.tower.check_layer(vision_feature_layer)
        return super().image_features(
            pixel_values=pixel_values,
            vision_feature_layer=vision_feature_layer,
            vision_feature_select_strategy=vision_feature_select_strategy,
            **kwargs,
        )

    def check_processor(self, processor: Any) -> None:
        """See `GroupedAdapter`."""
        config = self.base_model.config
        check_size(processor, config.vision_config)
        check_token(processor, config, "image")
