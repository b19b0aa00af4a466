"""A vision tower that packs images of any size, and hands out the queries and keys of its deciding layer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from visionzip_ext.integrations.transformers.towers.attention_recorder import AttentionInputs, AttentionRecorder
from visionzip_ext.integrations.transformers.towers.lock import Lock
from visionzip_ext.integrations.transformers.towers.zip_tower import check_dtype


class PackedTower:
    """A tower whose `blocks` attend within each image, or each temporal patch of a video, and nowhere else.

    It runs as it did, with its own attention implementation and all layers: the model takes the last one's output. The
    deciding layer alone calls attention once for each image, also where the others call it once for all. Nothing
    changes before `attach`. One forward at a time uses a tower: threads wait for each other.

    Attributes:
        tower: the vision model; only this instance is touched.
        layer: the deciding layer's number, from 0.
    """

    def __init__(self, tower: PreTrainedModel, layer: int) -> None:
        """Change nothing yet.

        Raises:
            TypeError: a tower of float64.
        """
        check_dtype(tower)
        self.tower = tower
        blocks: nn.ModuleList = tower.get_submodule("blocks")
        self.layer = range(len(blocks))[layer]
        self._recorder = AttentionRecorder(blocks[self.layer].get_submodule("attn"), tower.config)
        self._lock = Lock()
        self._hook: torch.utils.hooks.RemovableHandle | None = None
        self._decide: Callable[[list[AttentionInputs]], None] | None = None

    @property
    def name(self) -> str:
        """The tower's class, for messages."""
        return type(self.tower).__name__

    def attach(self) -> None:
        """Put the recorder into the tower."""
        self._recorder.attach()
        self._hook = self._recorder.attention.register_forward_hook(self._decide_now)

    def detach(self) -> None:
        """Take it out again."""
        if self._hook is not None:
            self._hook.remove()
        self._hook = None
        self._recorder.detach()

    @contextlib.contextmanager
    def deciding(
        self, in_its_place: nn.Module, patches: int, decide: Callable[[AttentionInputs], Any]
    ) -> Iterator[list[Any]]:
        """Inside the block, `decide` is asked once, in one forward of the tower; its answer is the list's only entry.

        It is asked as soon as the deciding layer's attention is done. Queries and keys, which are as large as the
        layer's output each, are not kept any longer: what the encoder does next needs memory of its own.

        Args:
            in_its_place: what the model calls now: the tower, or what it was wrapped in since.
            patches: of all images together.
            decide: is given queries and keys (patches, H, D) of the whole batch, in the tower's own order.

        Raises:
            RuntimeError: another tower stands in its place, or its attention was replaced.
        """
        if not any(module is self.tower for module in in_its_place.modules()):
            raise RuntimeError(
                f"the vision tower, a {self.name}, was replaced after compress; call visionzip_ext.compress(model, "
                "processor, ...) again"
            )
        answers: list[Any] = []
        with self._lock.held(), self._recorder.recording():
            self._decide = lambda calls: answers.append(decide(self._packed(calls, patches)))
            try:
                yield answers
                if not answers:
                    self._packed([], patches)
            finally:
                self._decide = None

    @torch.compiler.disable  # it is Python that depends on data
    def _decide_now(self, *call: Any) -> None:
        """Forward hook of the deciding layer's attention."""
        if self._decide is not None:
            self._decide(self._recorder.calls)
            self._recorder.calls.clear()

    def _packed(self, calls: list[AttentionInputs], patches: int) -> AttentionInputs:
        """Queries and keys (patches, H, D) of the whole batch.

        Args:
            calls: what was recorded in one forward.
            patches: of all images together.

        Raises:
            RuntimeError: other patches were recorded: the attention was replaced.
        """
        recorded = sum(call.keys.shape[2] for call in calls)
        if recorded != patches:
            raise RuntimeError(
                f"attention of layer {self.layer} of this {self.name} was recorded for {recorded} patches in one "
                f"forward, expected {patches}: its module or its config was replaced after compress; call "
                "visionzip_ext.compress(model, processor, ...) again"
            )
        return AttentionInputs(
            _joined([call.queries for call in calls]), _joined([call.keys for call in calls]), calls[0].scale
        )


def _joined(parts: list[Tensor]) -> Tensor:
    """Of each image (1, H, patches, D) -> (all patches, H, D)."""
    rows = [part[0].transpose(0, 1) for part in parts]
    return rows[0] if len(rows) == 1 else torch.cat(rows)
