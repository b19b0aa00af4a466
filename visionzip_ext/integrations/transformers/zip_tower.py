"""A vision tower that answers with zipped tokens: tap, early exit and operator put together."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

import visionzip_ext
from visionzip_ext.integrations.transformers.attention_tap import AttentionInputs, AttentionTap
from visionzip_ext.integrations.transformers.budget import Budget
from visionzip_ext.integrations.transformers.early_exit import LayerStack, select_depth


@dataclass(frozen=True)
class ZipDecision:
    """What became of each encoder token in one forward: for pictures, and for `visionzip_ext.merge` on other tensors.

    Attributes:
        indices: (B, dominant) int64, ascending: the encoder tokens kept, CLS (0) first where there is one.
        assignment: (B, S) int64: the output row that each encoder token went to: 0..dominant-1 kept,
            dominant..dominant+contextual-1 merged, -1 dropped (only for contextual = 0).
        grid: (rows, columns) of patches; S is their product, plus one where there is a CLS token.
        has_cls: encoder token 0 is CLS.
        dominant: rows kept.
        contextual: rows merged.
    """

    indices: Tensor
    assignment: Tensor
    grid: tuple[int, int]
    has_cls: bool
    dominant: int
    contextual: int


@dataclass(frozen=True)
class ZippedImages:
    """One forward of a `ZipTower`: `tokens` (B, dominant + contextual, C), the decision, and the tower's own output."""

    tokens: Tensor
    decision: ZipDecision
    outputs: BaseModelOutputWithPooling


class _Lock:
    """A re-entrant lock that can be copied and pickled with the model it guards: the copy gets a lock of its own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[Callable, tuple]:
        return _Lock, ()

    def held(self) -> contextlib.AbstractContextManager:
        # a lock cannot be part of a compiled graph, which is traced by one thread
        return contextlib.nullcontext() if torch.compiler.is_compiling() else self._lock


class ZipTower:
    """A CLIP or SigLIP vision tower whose select layer's tokens come out zipped.

    Nothing of the tower changes before `attach`. One forward at a time uses a tower: threads wait for each other.

    Attributes:
        tower: the vision model; only this instance is touched.
        has_cls: its token 0 is CLS.
        early_exit: whether the layers after the select layer are left out.
        layers: how many layers the whole tower has.
        depth: how many of them have run when the select layer's output exists.
    """

    def __init__(self, tower: PreTrainedModel, vision_feature_layer: int, *, has_cls: bool, early_exit: bool) -> None:
        """Find the select layer; change nothing yet.

        Args:
            tower: the vision model.
            vision_feature_layer: which of its hidden states to take; negative counts from the end.
            has_cls: the tower's token 0 is CLS.
            early_exit: leave out the layers after the select layer.

        Raises:
            TypeError: the tower keeps its layers in a place unknown here.
            ValueError: `vision_feature_layer` is out of range.
        """
        self.tower = tower
        self.has_cls = has_cls
        self.early_exit = early_exit
        self._stack = LayerStack(tower)
        self.layers = len(self._stack.layers)
        self.depth = select_depth(vision_feature_layer, self.layers)
        self._tap = AttentionTap(self._stack.layers[self.depth - 1].self_attn, tower.config)
        self._lock = _Lock()
        self._select_layer_output: Tensor | None = None
        self._hook: torch.utils.hooks.RemovableHandle | None = None

    @property
    def name(self) -> str:
        """The tower's class, for messages."""
        return type(self.tower).__name__

    @property
    def encoder_tokens(self) -> int:
        """Tokens of an image of the tower's own size, CLS included."""
        config = self.tower.config
        return (config.image_size // config.patch_size) ** 2 + self.has_cls

    def attach(self) -> None:
        """Put tap and hook into the tower."""
        self._tap.attach()
        self._hook = self._stack.owner.register_forward_hook(self._note_output)

    def detach(self) -> None:
        """Take them out again."""
        self._hook.remove()
        self._hook = None
        self._tap.detach()

    def __call__(self, pixel_values: Tensor, budget: Budget, **kwargs: Any) -> ZippedImages:
        """Encode images and zip their tokens.

        Args:
            pixel_values: (B, 3, height, width).
            budget: how many tokens to keep and to merge.
            kwargs: passed on to the tower. Asking for `output_hidden_states` or `output_attentions` runs all layers.
        """
        with self._lock.held(), self._tap.recording() as calls:
            hidden, outputs = self._run(pixel_values, kwargs)
        inputs = self._only_call(calls)
        result = visionzip_ext.zip_qk(
            hidden,
            inputs.queries,
            inputs.keys,
            budget.dominant,
            budget.contextual,
            scale=inputs.scale,
            has_cls=self.has_cls,
            merge=budget.merge,
        )
        patch = self.tower.config.patch_size
        grid = (pixel_values.shape[-2] // patch, pixel_values.shape[-1] // patch)
        decision = ZipDecision(
            result.indices, result.assignment, grid, self.has_cls, budget.dominant, budget.contextual
        )
        return ZippedImages(result.tokens, decision, outputs)

    def _run(self, pixel_values: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, BaseModelOutputWithPooling]:
        """The select layer's output (B, S, C) and the tower's output."""
        if not self.early_exit or kwargs.get("output_hidden_states") or kwargs.get("output_attentions"):
            outputs = self.tower(pixel_values, **(kwargs | {"output_hidden_states": True, "return_dict": True}))
            return outputs.hidden_states[self.depth], outputs
        # Said outright, because the config may ask for them: transformers 5 then hooks the layers it sees, for good.
        kwargs |= {"output_hidden_states": False, "output_attentions": False, "return_dict": True}
        try:
            with self._stack.only_first(self.depth):
                outputs = self.tower(pixel_values, **kwargs)
            return self._select_layer_output, outputs
        finally:
            self._select_layer_output = None

    def _note_output(self, module: nn.Module, args: tuple, output: Any) -> None:
        """Forward hook of the module that runs the layers.

        Not of the select layer itself, whose hooks gradient checkpointing may run without gradient.
        """
        if self._tap.is_recording:
            self._select_layer_output = output[0]

    def _only_call(self, calls: list[AttentionInputs]) -> AttentionInputs:
        if len(calls) == 1:
            return calls[0]
        raise RuntimeError(
            f"attention of layer {self.depth - 1} of this {self.name} was recorded {len(calls)} times in "
            "one forward, expected once: its module or its config was replaced after compress; "
            "call visionzip_ext.compress(model, processor, ...) again"
        )
