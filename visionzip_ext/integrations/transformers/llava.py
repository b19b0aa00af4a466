"""LLaVA-1.5: one CLIP (or SigLIP) vision tower, one hidden state of it, a projector."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import LlavaConfig, LlavaProcessor, PreTrainedModel, ProcessorMixin

from visionzip_ext.integrations.transformers.adapter import ModelAdapter
from visionzip_ext.integrations.transformers.budget import Budget
from visionzip_ext.integrations.transformers.early_exit import select_depth
from visionzip_ext.integrations.transformers.image_features import as_returned
from visionzip_ext.integrations.transformers.placeholders import AdditionalImageTokens
from visionzip_ext.integrations.transformers.zip_tower import ZipTower

# Vision towers by `model_type` of their config, and whether token 0 is CLS.
_TOWER_HAS_CLS = {"clip_vision_model": True, "siglip_vision_model": False}
_SELECT_STRATEGIES = ("default", "full")


class LlavaAdapter(ModelAdapter):
    """`LlavaForConditionalGeneration` and `LlavaModel`.

    Tokens are zipped between tower and projector. Both select strategies make dominant + contextual tokens of an image:
    the budget counts CLS, as in the paper's tables 8 and 9, and the strategy only says what happens to CLS without it.
    """

    @staticmethod
    def seam_of(model: PreTrainedModel) -> PreTrainedModel:
        """The inner `LlavaModel`."""
        return getattr(model, "model", model)

    @classmethod
    def bind(cls, model: PreTrainedModel, budget: Budget, *, early_exit: bool) -> LlavaAdapter:
        """See `ModelAdapter.bind`."""
        seam = cls.seam_of(model)
        kind = seam.vision_tower.config.model_type
        if kind not in _TOWER_HAS_CLS:
            raise TypeError(
                f"{type(model).__name__} has a vision tower of type {kind!r} ({type(seam.vision_tower).__name__}); "
                f"supported: {', '.join(_TOWER_HAS_CLS)}"
            )
        _check_strategy(seam.config.vision_feature_select_strategy)
        layer = _one_layer(seam.config.vision_feature_layer)
        tower = ZipTower(seam.vision_tower, layer, has_cls=_TOWER_HAS_CLS[kind], early_exit=early_exit)
        budget.check_fits(tower.encoder_tokens, type(seam.vision_tower).__name__)
        return cls(seam, tower, budget)

    def image_features(
        self,
        pixel_values: Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        image_sizes: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Images (B, 3, height, width) -> dominant + contextual projected tokens of each; see `as_returned`."""
        config = self.seam.config
        self._check_layer(config.vision_feature_layer if vision_feature_layer is None else vision_feature_layer)
        if vision_feature_select_strategy is not None:
            _check_strategy(vision_feature_select_strategy)
        if image_sizes is not None:
            raise ValueError(f"image_sizes is only for towers that pack images; {self.tower.name} takes one size")
        zipped = self.tower(pixel_values, self.budget, **{k: v for k, v in kwargs.items() if v is not None})
        self.last_decision = zipped.decision
        features = list(self.seam.multi_modal_projector(zipped.tokens))
        return as_returned(features, zipped.outputs, config.return_dict if return_dict is None else return_dict)

    def placeholders(self, processor: ProcessorMixin) -> AdditionalImageTokens:
        """See `ModelAdapter.placeholders`. Raises TypeError or ValueError for another model's processor."""
        if not isinstance(processor, LlavaProcessor):
            raise TypeError(f"processor must be the model's LlavaProcessor, got {type(processor).__name__}")
        _check_matches(processor, self.seam.config)
        patches = self.tower.encoder_tokens - self.tower.has_cls
        return AdditionalImageTokens(self.budget.tokens, patches)

    def _check_layer(self, vision_feature_layer: int | list[int]) -> None:
        depth = select_depth(_one_layer(vision_feature_layer), self.tower.layers)
        if depth != self.tower.depth:
            raise ValueError(
                f"vision_feature_layer={vision_feature_layer} is hidden state {depth} of the vision tower, but the "
                f"model was compressed on hidden state {self.tower.depth}; "
                "set model.config.vision_feature_layer and call visionzip_ext.compress again"
            )


def _one_layer(vision_feature_layer: int | list[int]) -> int:
    if isinstance(vision_feature_layer, int):
        return vision_feature_layer
    if len(vision_feature_layer) == 1:
        return vision_feature_layer[0]
    raise ValueError(
        f"vision_feature_layer={vision_feature_layer} takes features from {len(vision_feature_layer)} layers; "
        "supported for LLaVA: one layer, as in every released LLaVA-1.5 (vision_feature_layer=-2)"
    )


def _check_strategy(strategy: str) -> None:
    if strategy not in _SELECT_STRATEGIES:
        raise ValueError(f'vision_feature_select_strategy must be "default" or "full", got {strategy!r}')


def _check_matches(processor: LlavaProcessor, config: LlavaConfig) -> None:
    """Raise ValueError unless the processor cuts images as the model's vision tower does."""
    vision = config.vision_config
    if processor.patch_size != vision.patch_size:
        raise ValueError(
            f"processor.patch_size is {processor.patch_size}, but the model's vision tower has patches of "
            f"{vision.patch_size} pixels; take the processor of the same checkpoint or set "
            f"processor.patch_size = {vision.patch_size}"
        )
    size = _image_size(processor.image_processor)
    if size != (vision.image_size, vision.image_size):
        raise ValueError(
            f"the processor makes images of {size[0]} x {size[1]} pixels, the model's vision tower takes "
            f"{vision.image_size} x {vision.image_size}; take the processor of the same checkpoint"
        )
    if processor.image_token_id != config.image_token_id:
        raise ValueError(
            f"the processor's image token {processor.image_token!r} has id {processor.image_token_id}, the model "
            f"expects {config.image_token_id} (config.image_token_id); take the processor of the same checkpoint"
        )


def _image_size(image_processor: Any) -> tuple[int, int]:
    """(height, width) of the pixel values that an image processor makes."""
    size = image_processor.crop_size if getattr(image_processor, "do_center_crop", False) else image_processor.size
    return size["height"], size["width"]
