"""Runs an encoder only as far as its select layer: what comes after would be computed and thrown away."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

# (path of the module that runs the layers, name of its layer list); CLIP and SigLIP with and without the wrapper that
# they had before transformers 5.9, then DINOv2
_LAYER_LISTS = (("vision_model.encoder", "layers"), ("encoder", "layers"), ("encoder", "layer"))
# where a layer has the module that calls the attention function
_ATTENTIONS = ("self_attn", "attention.attention", "attention")


class LayerStack:
    """An encoder's layers and the module that runs them.

    Attributes:
        owner: the module whose forward loops over the layers; the first element of its output is the last one's output.
    """

    def __init__(self, encoder: nn.Module) -> None:
        """Find the layers of a vision tower.

        Raises:
            TypeError: they are where no supported tower has them.
        """
        for path, name in _LAYER_LISTS:
            with contextlib.suppress(AttributeError):
                owner = encoder.get_submodule(path)
                if isinstance(getattr(owner, name), nn.ModuleList):
                    self.owner, self._name = owner, name
                    return
        places = ", ".join(f"{path}.{name}" for path, name in _LAYER_LISTS)
        raise TypeError(
            f"{type(encoder).__name__} has no list of layers at any of {places}; a CLIP, SigLIP or DINOv2 tower does"
        )

    def attention_of(self, layer: int) -> nn.Module:
        """The module of a layer that hands queries and keys to the attention function.

        Raises:
            TypeError: it is where no supported tower has it, or does not go through transformers' attention interface.
        """
        for path in _ATTENTIONS:
            with contextlib.suppress(AttributeError):
                module = self.layers[layer].get_submodule(path)
                if hasattr(module, "config"):
                    return module
        places = ", ".join(_ATTENTIONS)
        raise TypeError(
            f"{type(self.layers[layer]).__name__} has no attention with a config at any of {places}; its attention "
            "cannot be tapped"
        )

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
