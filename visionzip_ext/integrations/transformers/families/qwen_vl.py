"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: images of any size, packed; tokens of 2 x 2 patches are what is zipped."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers import ProcessorMixin

from visionzip_ext.integrations.transformers.adapter import ModelAdapter
from visionzip_ext.integrations.transformers.families.kept_positions import (
    MODALITIES,
    PLACES,
    KeptPlaces,
    compact_rope_index,
)
from visionzip_ext.integrations.transformers.image_features import RETURNS_OUTPUT_OBJECT
from visionzip_ext.integrations.transformers.processors.checks import check_class, check_token
from visionzip_ext.integrations.transformers.processors.grid_placeholders import GridPlaceholders
from visionzip_ext.integrations.transformers.towers.attention_recorder import AttentionInputs
from visionzip_ext.integrations.transformers.towers.packed_tower import PackedTower
from visionzip_ext.tokens.packed_images import FramesDecision, PackedImages, decide_frames


class Qwen2VLAdapter(ModelAdapter):
    """`Qwen2VLForConditionalGeneration` and `Qwen2VLModel`. Tokens are zipped after the merger.

    The deciding layer is the last one. `get_rope_index` answers for the tokens that are left: see kept_positions.py.

    Attributes:
        processor_class: of its processor.
        encoders: by modality, the method of the model's class that runs the tower.
    """

    positions = ("kept",)
    projectors: tuple[str, ...] = ("visual.merger",)
    processor_class = "Qwen2VLProcessor"
    encoders: Mapping[str, str] = MappingProxyType({name: f"get_{name}_features" for name in MODALITIES})

    def make_towers(self) -> dict[str, Any]:
        """See `ModelAdapter.make_towers`."""
        self._places = KeptPlaces()
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        return {"visual": PackedTower(self.base_model.get_submodule("visual"), self.deciding_layer)}

    @property
    def has_cls(self) -> bool:
        """See `ModelAdapter.has_cls`."""
        return False

    @property
    def packed_tower(self) -> PackedTower:
        """The tower, which images and videos share."""
        tower: Any = self.towers["visual"]
        return tower

    @property
    def deciding_layer(self) -> int:
        """The layer whose attention decides; negative counts from the end."""
        return -1

    @property
    def images(self) -> PackedImages:
        """The budgets of this model's images and videos."""
        return PackedImages(self.settings.budget, self.base_model.config.vision_config.spatial_merge_size)

    def check_positions(self, model: Any) -> None:
        """See `ModelAdapter.check_positions`."""
        if self.settings.positions not in self.positions:
            raise ValueError(
                f'positions="{self.settings.positions}" has no meaning for {type(model).__name__}, whose tokens '
                'have 3D positions in a grid, with gaps where some are left out; it takes "kept", its default'
            )

    def make_sequence(self, model: Any) -> None:
        """Nothing: positions are kept by `rope_index`."""

    def check_budget(self) -> None:
        """Nothing: how many tokens there are is known of each image alone."""

    @property
    def feature_methods(self) -> dict[str, Callable[..., Any]]:
        """See `ModelAdapter.feature_methods`."""
        return {
            "get_image_features": self.image_features,
            "get_video_features": self.video_features,
            "get_rope_index": self.rope_index,
        }

    def attach(self) -> None:
        """See `ModelAdapter.attach`."""
        super().attach()
        language_model = self.base_model.get_submodule("language_model")
        self._hooks = [
            self.base_model.register_forward_pre_hook(self._places.note_precomputed, with_kwargs=True),
            language_model.register_forward_pre_hook(self._places.redeem, with_kwargs=True),
        ]

    def detach(self) -> None:
        """See `ModelAdapter.detach`."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        super().detach()

    def image_features(self, pixel_values: Tensor, image_grid_thw: Tensor, **kwargs: Any) -> Any:
        """Patches of images -> for each (tokens, channels)."""
        return self._features("image", pixel_values, image_grid_thw, **kwargs)

    def video_features(self, pixel_values_videos: Tensor, video_grid_thw: Tensor, **kwargs: Any) -> Any:
        """Patches of videos -> for each (tokens, channels)."""
        return self._features("video", pixel_values_videos, video_grid_thw, **kwargs)

    def rope_index(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """In place of the model's `get_rope_index`: same arguments, same result."""
        full = type(self.base_model).get_rope_index
        arguments = inspect.signature(full).bind(self.base_model, *args, **kwargs).arguments
        arguments |= arguments.pop("kwargs", {})
        del arguments["self"]
        grids = {modality: arguments.get(f"{modality}_grid_thw") for modality in MODALITIES}
        if arguments.get("input_ids") is None or all(grid is None for grid in grids.values()):
            return full(self.base_model, **arguments)
        visuals = [
            (
                modality,
                grid,
                [self.images.frames([one]) for one in grid.tolist()],
                getattr(self.base_model.config, f"{modality}_token_id"),
            )
            for modality, grid in grids.items()
            if grid is not None
        ]
        return compact_rope_index(lambda **named: full(self.base_model, **named), arguments, visuals)

    def placeholders(self, processor: ProcessorMixin) -> GridPlaceholders:
        """See `ModelAdapter.placeholders`."""
        config = self.base_model.config
        check_class(processor, self.processor_class)
        image_processor: Any = processor.image_processor
        for name, expected in (
            ("patch_size", config.vision_config.patch_size),
            ("merge_size", config.vision_config.spatial_merge_size),
        ):
            if getattr(image_processor, name) != expected:
                raise ValueError(
                    f"processor.image_processor.{name} is {getattr(image_processor, name)}, but the model's vision "
                    f"tower has {expected}; take the processor of the same checkpoint"
                )
        for modality in MODALITIES:
            check_token(processor, config, modality)
        return GridPlaceholders(self.images)

    def _features(
        self, modality: str, pixels: Tensor, grids: Tensor, *, return_dict: bool | None = None, **kwargs: Any
    ) -> Any:
        """What the model's own method returns, zipped."""
        model, tower = self.base_model, self.packed_tower
        own_method = getattr(type(model), self.encoders[modality])
        if RETURNS_OUTPUT_OBJECT:
            kwargs["return_dict"] = True
        by_image = [self.images.frames([grid]) for grid in grids.tolist()]
        frames = [frame for image in by_image for frame in image]
        counts = [sum(frame.budget.tokens for frame in image) for image in by_image]
        group = self.images.merge_size**2
        patches = sum(frame.tokens for frame in frames) * group

        def decide(recorded: AttentionInputs) -> FramesDecision:
            queries, keys, scale = recorded
            if (order := self.raster_order(grids)) is not None:
                queries, keys = (_by_token(x, order) for x in (queries, keys))
            return decide_frames(queries, keys, scale, frames, group, self.settings.budget.rule)

        with tower.deciding(model.get_submodule("visual"), patches, decide) as decided:
            outputs = own_method(model, pixels, grids, **kwargs)
        (decision,) = decided
        self._places.note(modality, decision.places)
        self.last_decision = decision.decision
        if not RETURNS_OUTPUT_OBJECT:
            features, *deepstack = outputs if isinstance(outputs[-1], list) else (outputs,)
            rows = decision.apply(torch.cat(tuple(features))).split(counts)
            return (rows, [decision.apply(layer) for layer in deepstack[0]]) if deepstack else rows
        outputs.pooler_output = decision.apply(torch.cat(tuple(outputs.pooler_output))).split(counts)
        if getattr(outputs, "deepstack_features", None) is not None:
            outputs.deepstack_features = [
                decision.apply(layer) if isinstance(layer, Tensor) else decision.apply(torch.cat(layer)).split(counts)
                for layer in outputs.deepstack_features
            ]
        setattr(outputs, PLACES, decision.places)
        wanted = model.config.return_dict if return_dict is None else return_dict
        return outputs if wanted else outputs.to_tuple()

    def raster_order(self, grids: Tensor) -> Tensor | None:
        """(tokens,): where in the tower's order each token is; None: they are in raster order."""
        return None


class Qwen2_5VLAdapter(Qwen2VLAdapter):
    """`Qwen2_5_VLForConditionalGeneration`: the last layer of full attention decides; windows know too little."""

    processor_class = "Qwen2_5_VLProcessor"

    @property
    def deciding_layer(self) -> int:
        """See `Qwen2VLAdapter.deciding_layer`."""
        return max(self.base_model.config.vision_config.fullatt_block_indexes)

    def raster_order(self, grids: Tensor) -> Tensor:
        """The tower puts the tokens of a window side by side."""
        tower: Any = self.packed_tower.tower
        try:
            from transformers.vision_utils import get_vision_window_index
        except ImportError:  # of transformers 4 and the first of 5
            return tower.get_window_index(grids)[0].argsort()
        sizes = {name: getattr(tower, name) for name in ("spatial_merge_size", "window_size", "patch_size")}
        return get_vision_window_index(grids, **sizes)[0].argsort()


class Qwen3VLAdapter(Qwen2VLAdapter):
    """`Qwen3VLForConditionalGeneration`, also the MoE form: DeepStack features go the same way."""

    projectors = ("visual.merger", "visual.deepstack_merger_list")
    processor_class = "Qwen3VLProcessor"
    # the model's own method for videos calls that for images, which would be ours
    encoders = MappingProxyType(dict.fromkeys(MODALITIES, "get_image_features"))


def _by_token(x: Tensor, order: Tensor) -> Tensor:
    """Queries or keys (patches, H, D), a whole token at a time."""
    return x.unflatten(0, (len(order), -1))[order.to(x.device)].flatten(0, 1)
