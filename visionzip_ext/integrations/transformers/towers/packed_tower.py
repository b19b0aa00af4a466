"""A vision tower that packs images of any size, and hands out the queries and keys of its deciding layer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

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

    @property
    def name(self) -> str:
        """The tower's class, for messages."""
        return type(self.tower).__name__

    def attach(self) -> None:
        """Put the recorder into the tower."""
        self._recorder.attach()

    def detach(self) -> None:
        """Take it out again."""
        self._recorder.detach()

    @contextlib.contextmanager
    def recording(self, in_its_place: nn.Module) -> Iterator[list[AttentionInputs]]:
        """The calls of the deciding layer's attention in one forward of the tower, inside the block.

        Args:
            in_its_place: what the model calls now: the tower, or what it was wrapped in since.

        Raises:
            RuntimeError: another tower stands in its place.
        """
        if not any(module is self.tower for module in in_its_place.modules()):
            raise RuntimeError(
                f"the vision tower, a {self.name}, was replaced after compress; call visionzip_ext.compress(model, "
                "processor, ...) again"
            )
        with self._lock.held(), self._recorder.recording() as calls:
            yield calls

    def packed(self, calls: list[AttentionInputs], patches: int) -> AttentionInputs:
        """Queries and keys (patches, H, D) of the whole batch, in the tower's own order.

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
