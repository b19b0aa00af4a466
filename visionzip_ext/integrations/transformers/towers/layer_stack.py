"""An encoder's layers; run only as far as the select layer: what comes after would be computed and thrown away."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from visionzip_ext.integrations.transformers.towers.kinds import TowerKind, first_of


class LayerStack:
    """An encoder's layers and what is around them.

    Attributes:
        owner: the module whose forward loops over the layers.
        norm: the layer norm after them, see `TowerKind`; None where the first element of `owner`'s output is the last
            layer's.
    """

    def __init__(self, encoder: nn.Module, kind: TowerKind) -> None:
        """Find the layers of a vision tower, which has them where its kind says."""
        self._kind = kind
        path = next(path for path in kind.layers if first_of(encoder, (path,)) is not None)
        parent, _, self._name = path.rpartition(".")
        self.owner = encoder.get_submodule(parent)
        self.norm = None if kind.norm is None else encoder.get_submodule(kind.norm)

    def attention_of(self, layer: int) -> nn.Module:
        """The module of a layer that hands queries and keys to the attention function.

        Raises:
            TypeError: it is elsewhere, so that its attention does not go through transformers' attention interface.
        """
        module = first_of(self.layers[layer], self._kind.attention)
        if module is None or not hasattr(module, "config"):
            raise TypeError(
                f"{type(self.layers[layer]).__name__} has no attention with a config at any of "
                f"{', '.join(self._kind.attention)}; its queries and keys cannot be recorded"
            )
        return module

    @property
    def layers(self) -> nn.ModuleList:
        """All layers (inside `only_first`: those that the owner sees)."""
        return getattr(self.owner, self._name)

    @contextlib.contextmanager
    def only_first(self, count: int) -> Iterator[None]:
        """Let the owner see its first `count` layers inside the block. The caller keeps other threads out."""
        full = self.layers
        if count >= len(full):
            yield
            return
        setattr(self.owner, self._name, full[:count])
        try:
            yield
        finally:
            setattr(self.owner, self._name, full)


def select_depth(vision_feature_layer: int, layers: int) -> int:
    """How many layers have run when `hidden_states[vision_feature_layer]` exists: 1..layers.

    An encoder of L layers has L + 1 hidden states, the first of which are the embeddings.

    Raises:
        ValueError: out of range, or the embeddings, which no attention made.
    """
    states = layers + 1
    if not -states <= vision_feature_layer < states:
        raise ValueError(
            f"vision_feature_layer={vision_feature_layer} is out of range for a vision tower of {layers} layers; "
            f"expected {-layers}..-1 or 1..{layers}"
        )
    depth = vision_feature_layer % states
    if depth == 0:
        raise ValueError(
            f"vision_feature_layer={vision_feature_layer} names the patch embeddings, which no attention layer made: "
            f"there are no scores to select by; expected {-layers}..-1 or 1..{layers}"
        )
    return depth
