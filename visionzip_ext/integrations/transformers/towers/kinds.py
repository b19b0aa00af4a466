"""The table of vision models: a new kind is one row here."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PretrainedConfig

BY_HOOKS = "take its queries and keys with hooks and call visionzip_ext.zip_qk, as docs/any_vit.md shows"
"""What to do with a vision model that is not in the table."""


@dataclass(frozen=True)
class TowerKind:
    """Where a kind of vision model has what is needed of it.

    Register tokens are no matter of the kind: the config counts them, and they follow CLS.

    Attributes:
        has_cls: token 0 is CLS.
        layers: paths of its list of layers, one for each version of transformers that has it elsewhere.
        attention: paths, inside a layer, of the module that hands queries and keys to the attention function.
        norm: path of the layer norm that takes all tokens of the last layer, where the module that runs the layers
            gives them away only normalised; None where that module's output is the last layer's.
        takes_patches: its pixel values are patches of images of any shape, padded, with `spatial_shapes` (NaFlex).
    """

    has_cls: bool
    layers: tuple[str, ...]
    attention: tuple[str, ...]
    norm: str | None = None
    takes_patches: bool = False


# with and without the wrapper that these had before transformers 5.9
_CLIP_LAYERS = ("vision_model.encoder.layers", "encoder.layers")
# an outer module of this name holds the one that dispatches; later versions made them one
_VIT_ATTENTION = ("attention.attention", "attention")

# by `model_type` of the config
TOWER_KINDS = {
    "clip_vision_model": TowerKind(True, _CLIP_LAYERS, ("self_attn",)),
    "siglip_vision_model": TowerKind(False, _CLIP_LAYERS, ("self_attn",)),
    "siglip2_vision_model": TowerKind(False, _CLIP_LAYERS, ("self_attn",), takes_patches=True),
    "idefics3_vision": TowerKind(False, ("encoder.layers",), ("self_attn",)),
    "smolvlm_vision": TowerKind(False, ("encoder.layers",), ("self_attn",)),
    "internvl_vision": TowerKind(True, ("encoder.layer",), ("attention",)),
    "vit": TowerKind(True, ("layers", "encoder.layer"), _VIT_ATTENTION, norm="layernorm"),
    "dinov2": TowerKind(True, ("encoder.layer",), _VIT_ATTENTION),
    "dinov2_with_registers": TowerKind(True, ("encoder.layer",), _VIT_ATTENTION),
    "dinov3_vit": TowerKind(True, ("model.layer", "layer"), ("attention",), norm="norm"),
}


def kind_of(tower: nn.Module) -> TowerKind:
    """The row of a vision model.

    Raises:
        TypeError: none; the message says what to do instead.
    """
    if (kind := _row(tower)) is not None and first_of(tower, kind.layers) is not None:
        return kind
    name = type(tower).__name__
    if (path := _inner_vision_model(tower)) is not None:
        raise TypeError(f"{name} is a larger model around its vision model; pass that, .{path}")
    model_type = _model_type(tower)
    if model_type == "timm_wrapper":
        raise TypeError(
            f"{name} computes attention inside timm, not by an attention function of transformers; {BY_HOOKS}"
        )
    raise TypeError(
        f"a vision tower of type {model_type!r} ({name}) is not supported; supported: {', '.join(TOWER_KINDS)}; for "
        f"any other, {BY_HOOKS}"
    )


def first_of(module: nn.Module, paths: tuple[str, ...]) -> nn.Module | None:
    """The submodule at the first of these paths that exists."""
    for path in paths:
        try:
            return module.get_submodule(path)
        except AttributeError:
            continue
    return None


def _model_type(module: nn.Module) -> str | None:
    config = getattr(module, "config", None)
    return config.model_type if isinstance(config, PretrainedConfig) else None


def _row(module: nn.Module) -> TowerKind | None:
    return TOWER_KINDS.get(_model_type(module) or "")


def _inner_vision_model(model: nn.Module) -> str | None:
    """Where a CLIPModel, a ViTForImageClassification and their like have a vision model that is supported."""
    for path in ("vision_model", getattr(model, "base_model_prefix", "")):
        inside = getattr(model, path, None) if path else None
        if inside is not None and inside is not model and _row(inside) is not None:
            return path
    return None
