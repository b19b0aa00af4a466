"""A vision tower whose features can be zipped: its recorder and early exit put together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from visionzip_ext.integrations.transformers.towers.attention_recorder import AttentionInputs, AttentionRecorder
from visionzip_ext.integrations.transformers.towers.layer_stack import LayerStack, select_depth
from visionzip_ext.integrations.transformers.towers.lock import Lock
from visionzip_ext.tokens.tiles import TileFeatures


@dataclass(frozen=True)
class EncodedTiles(TileFeatures):
    """One forward of a `ZipTower`: the select layer's output (of several layers, concatenated), queries and keys.

    Attributes:
        outputs: the tower's own output.
    """

    outputs: BaseModelOutputWithPooling


_ANEW = "call visionzip_ext.compress(model, processor, ...) again, or make a new VisionZipEncoder"


class ZipTower:
    """A vision tower that hands out, with its features, the queries and keys they are zipped by.

    Nothing of the tower changes before `attach`. One forward at a time uses a tower: threads wait for each other.

    Attributes:
        tower: the vision model; only this instance is touched.
        early_exit: whether the layers after the select layer are left out.
        layers: how many layers the whole tower has.
        depths: how many of them have run when each layer whose output is a feature has.
        depth: that of the select layer, whose attention decides: the deepest of them.
    """

    def __init__(self, tower: PreTrainedModel, vision_feature_layer: int | Sequence[int], *, early_exit: bool) -> None:
        """Find the select layer; change nothing yet.

        Args:
            tower: the vision model.
            vision_feature_layer: which of its hidden states to take; negative counts from the end. Of several, the
                features are concatenated in this order.
            early_exit: leave out the layers after the select layer. With several, all run.

        Raises:
            TypeError: a tower of an unknown kind, or of float64; `early_exit` is not a bool.
            ValueError: `vision_feature_layer` is out of range.
        """
        if not isinstance(early_exit, bool):
            raise TypeError(f"early_exit must be True or False, got {early_exit!r} of type {type(early_exit).__name__}")
        self.tower = tower
        self._stack = LayerStack(tower)
        check_dtype(tower)
        # Between CLS and the patches; they stand for no place in the image and are left out before anything is decided.
        self._registers = getattr(tower.config, "num_register_tokens", 0)
        self.early_exit = early_exit
        self.layers = len(self._stack.layers)
        self.depths = feature_depths(vision_feature_layer, self.layers)
        self.depth = max(self.depths)
        self._recorder = AttentionRecorder(self._stack.attention_of(self.depth - 1), tower.config)
        self._lock = Lock()
        self._select_layer_output: Tensor | None = None
        self._hook: torch.utils.hooks.RemovableHandle | None = None

    @property
    def name(self) -> str:
        """The tower's class, for messages."""
        return type(self.tower).__name__

    @property
    def has_cls(self) -> bool:
        """Whether its token 0 is CLS."""
        return self._stack.kind.has_cls

    @property
    def takes_patches(self) -> bool:
        """Whether its pixel values are patches of images of any shape, not images: see `TowerKind`."""
        return self._stack.kind.takes_patches

    @property
    def patches(self) -> int:
        """Patches along a side of an image of the tower's own size.

        Raises:
            TypeError: a tower that takes images of any shape.
        """
        if self.takes_patches:
            raise TypeError(
                f"{self.name} takes images of any shape, cut into patches and with their spatial_shapes, for which "
                "only visionzip_ext.VisionZipEncoder is made; take a tower of one image size, such as SiglipVisionModel"
            )
        config = self.tower.config
        return _along_a_side(config.image_size) // _along_a_side(config.patch_size)

    @property
    def encoder_tokens(self) -> int:
        """Tokens of an image of the tower's own size, CLS included, registers not."""
        return self.patches**2 + self.has_cls

    def attach(self) -> None:
        """Put recorder and hook into the tower."""
        self._recorder.attach()
        if self._stack.norm is None:
            self._hook = self._stack.owner.register_forward_hook(self._note_output)
        else:
            self._hook = self._stack.norm.register_forward_pre_hook(self._note_input)

    def detach(self) -> None:
        """Take them out again."""
        if self._hook is not None:
            self._hook.remove()
        self._hook = None
        self._recorder.detach()

    def check_layer(self, vision_feature_layer: int | Sequence[int]) -> None:
        """Raise ValueError unless these are the layers that the tower was made for."""
        if feature_depths(vision_feature_layer, self.layers) != self.depths:
            made_for = ", ".join(map(str, self.depths))
            raise ValueError(
                f"vision_feature_layer={vision_feature_layer} is not what the model was compressed for, hidden state "
                f"{made_for} of the vision tower; set model.config.vision_feature_layer and call "
                "visionzip_ext.compress again"
            )

    @property
    def is_recording(self) -> bool:
        """Whether `recorded` has a meaning: inside `recording`, or a call."""
        return self._recorder.is_recording

    @contextlib.contextmanager
    def recording(self, through: nn.Module) -> Iterator[None]:
        """For models that call the tower themselves: inside the block, one forward of all layers is recorded.

        Args:
            through: the module that stands in the tower's place now, as for a call.

        Raises:
            RuntimeError: another tower stands in its place.
        """
        self._check_contained(through)
        with self._lock.held(), self._recorder.recording():
            try:
                yield
            finally:
                self._select_layer_output = None

    def recorded(self) -> AttentionInputs:
        """Inside `recording`: the select layer's queries, keys and scale.

        Raises:
            RuntimeError: its attention was replaced.
        """
        return self._only_call(self._recorder.calls)

    def __call__(self, pixel_values: Tensor, *, through: nn.Module, **kwargs: Any) -> EncodedTiles:
        """Encode tiles.

        Args:
            pixel_values: (T, 3, height, width); or, where the tower `takes_patches`, (T, patches, channels of a patch).
            through: the module that stands in the tower's place now and is called: the tower itself, or what it was
                wrapped in since, such as `torch.compile` of it.
            kwargs: passed on to the tower; None is left out. Asking for `output_hidden_states` or `output_attentions`,
                here or in the tower's config, runs all layers.

        Raises:
            RuntimeError: another tower stands in its place, or its attention was replaced.
        """
        self._check_contained(through)
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        with self._lock.held(), self._recorder.recording() as calls:
            try:
                features, outputs = self._run(through, pixel_values, kwargs)
            finally:
                self._select_layer_output = None  # it has its graph, which would stay alive and cannot be copied
        attention = self._only_call(calls)
        if self._registers:
            features = self._without_registers(features)
            queries, keys = (self._without_registers(x) for x in (attention.queries, attention.keys))
            attention = AttentionInputs(queries, keys, attention.scale)
        return EncodedTiles(features, *attention, self._grid(pixel_values), self.has_cls, outputs)

    def _grid(self, pixel_values: Tensor) -> tuple[int, int]:
        """(rows, columns) of patches; of images that come as patches one row of all, which `by_shape` takes apart."""
        if self.takes_patches:
            return 1, pixel_values.shape[1]
        patch = _along_a_side(self.tower.config.patch_size)
        return pixel_values.shape[-2] // patch, pixel_values.shape[-1] // patch

    def _without_registers(self, x: Tensor) -> Tensor:
        """(..., tokens, channels) with CLS and patches alone."""
        first_patch = self.has_cls + self._registers
        return torch.cat([x[..., : int(self.has_cls), :], x[..., first_patch:, :]], -2)

    def _check_contained(self, through: nn.Module) -> None:
        if through is not self.tower and not any(module is self.tower for module in through.modules()):
            raise RuntimeError(f"the vision tower, a {self.name}, was replaced after compress; {_ANEW}")

    def _run(
        self, through: nn.Module, pixel_values: Tensor, kwargs: dict[str, Any]
    ) -> tuple[Tensor, BaseModelOutputWithPooling]:
        """The features (T, tokens, C) and the tower's output."""
        if isinstance(self.tower, PreTrainedModel):  # CLIPModel's, before transformers 5.9, is none and has no choice
            kwargs = kwargs | {"return_dict": True}
        all_layers = len(self.depths) > 1 or not self.early_exit
        if all_layers or any(self._asks_for(name, kwargs) for name in ("output_hidden_states", "output_attentions")):
            outputs = through(pixel_values, **(kwargs | {"output_hidden_states": True}))
            states = [outputs.hidden_states[depth] for depth in self.depths]
            return states[0] if len(states) == 1 else torch.cat(states, -1), outputs
        # Said outright, whatever the config says: transformers 5 hooks the layers that it sees when asked, for good.
        kwargs = kwargs | {"output_hidden_states": False, "output_attentions": False}
        with self._stack.only_first(self.depth):
            outputs = through(pixel_values, **kwargs)
        assert self._select_layer_output is not None  # by the hook
        return self._select_layer_output, outputs

    def _asks_for(self, name: str, kwargs: dict[str, Any]) -> bool:
        """Whether the call wants an output, or, where it does not say, the tower's config."""
        return bool(kwargs.get(name, getattr(self.tower.config, name, False)))

    def _note_output(self, module: nn.Module, args: tuple, output: Any) -> None:
        """Forward hook of the module that runs the layers.

        Not of the select layer itself, whose hooks gradient checkpointing may run without gradient.
        """
        if self._recorder.is_recording:
            self._select_layer_output = output[0]

    def _note_input(self, module: nn.Module, args: tuple) -> None:
        """Forward pre-hook of the layer norm that takes what the layers make."""
        if self._recorder.is_recording:
            (self._select_layer_output,) = args

    def _only_call(self, calls: list[AttentionInputs]) -> AttentionInputs:
        if len(calls) == 1:
            return calls[0]
        raise RuntimeError(
            f"attention of layer {self.depth - 1} of this {self.name} was recorded {len(calls)} times in "
            "one forward, expected once: its module or its config was replaced after compress; "
            f"{_ANEW}"
        )


def feature_depths(vision_feature_layer: int | Sequence[int], layers: int) -> tuple[int, ...]:
    """`select_depth` of one layer or of several."""
    several = (vision_feature_layer,) if isinstance(vision_feature_layer, int) else vision_feature_layer
    if not several:
        raise ValueError("vision_feature_layer is empty; expected a layer or several")
    return tuple(select_depth(layer, layers) for layer in several)


def _along_a_side(size: int | Sequence[int]) -> int:
    """Of a square, which some configs give by both sides."""
    return size if isinstance(size, int) else size[0]


def check_dtype(tower: nn.Module) -> None:
    """Raise TypeError for a tower of float64, which the operators do not take."""
    if any(parameter.dtype == torch.float64 for parameter in tower.parameters()):
        raise TypeError(
            f"{type(tower).__name__} has parameters of float64; VisionZip's operators take float32, float16 and "
            "bfloat16: call .float() on the model first"
        )
