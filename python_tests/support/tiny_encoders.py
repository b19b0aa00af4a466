"""Tiny random vision encoders of every supported kind, and what VisionZip makes of them by its definition."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
import transformers
from support import tiny_models as tiny
from support.tiny_models import IMAGE_SIZE, LAYERS, PATCH
from torch import Tensor, nn
from transformers.models.dinov3_vit.modeling_dinov3_vit import apply_rotary_pos_emb

from visionzip_ext import reference

REGISTERS = 3
CHANNELS = 32
HEADS = 4
KINDS = ("clip", "siglip", "vit", "dinov2", "dinov2_with_registers", "dinov3")


def tokens_of(kind: str, patches: int) -> int:
    """How many tokens an encoder makes of so many patches, CLS included, registers not."""
    return patches + (kind != "siglip")


def encoder(kind: str) -> transformers.PreTrainedModel:
    """A random encoder."""
    return randomized(_untrained(kind)).eval()


def randomized(model: nn.Module) -> nn.Module:
    """Weights that make attention far from uniform, and no two tokens begin alike; layer norms that do something."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight", "query.weight", "key.weight")):
                parameter.normal_(0, 0.2)
            if name.endswith(("cls_token", "register_tokens")) or "norm" in name:
                parameter.normal_(1 if name.endswith("weight") else 0, 0.3)
    return model


def _untrained(kind: str) -> transformers.PreTrainedModel:
    if kind == "clip":
        return transformers.CLIPVisionModel(tiny.vision_config("clip"))
    if kind == "siglip":
        return transformers.SiglipVisionModel(tiny.vision_config("siglip"))
    sizes = {"hidden_size": CHANNELS, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    sizes |= {"image_size": IMAGE_SIZE, "patch_size": PATCH}
    if kind == "vit":
        return transformers.ViTModel(transformers.ViTConfig(**sizes, intermediate_size=64))
    if kind == "dinov2":
        return transformers.Dinov2Model(transformers.Dinov2Config(**sizes))
    if kind == "dinov3":
        # without pos_embed_rescale: in training mode it makes positions random
        own = {"intermediate_size": 64, "num_register_tokens": REGISTERS, "pos_embed_rescale": None}
        return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**sizes, **own))
    config = transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=REGISTERS)
    return transformers.Dinov2WithRegistersModel(config)


def layers_of(model: nn.Module) -> nn.ModuleList:
    """Its layers, wherever this version of transformers has them."""
    (layers,) = (module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == LAYERS)
    return layers


class Eager(NamedTuple):
    """What VisionZip's inputs are by definition.

    Attributes:
        hidden: (B, S, C): the layer's output.
        keys: (B, H, S, D): the layer's.
        attn: (B, H, S, S): its attention, every row's sum is 1.
        has_cls: token 0 is CLS.
    """

    hidden: Tensor
    keys: Tensor
    attn: Tensor
    has_cls: bool

    def zip(self, k: int, m: int, merge: str = "residual") -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, indices and assignment."""
        return reference.zip(self.hidden, self.keys, self.attn, k, m, self.has_cls, merge)

    def is_clear(self, k: int, m: int, gap: float = 1e-4) -> bool:
        """Whether no near tie leaves a decision to how the encoder rounds."""
        scores = reference.attention_scores(self.attn.double(), self.has_cls)[:, int(self.has_cls) :]
        best = scores.sort(1, descending=True).values
        kept = k - self.has_cls
        if 0 < kept < best.shape[1] and ((best[:, kept - 1] - best[:, kept]) < gap * best[:, kept]).any():
            return False
        assignment = self.zip(k, m)[2]
        metric = nn.functional.normalize(self.keys.double().mean(1), dim=-1)
        for image in range(len(metric)):
            rest = (assignment[image] >= k).nonzero()[:, 0]
            targets = rest[:: max(1, len(rest) // m)][:m]
            to_merge = rest[~torch.isin(rest, targets)]
            nearest = (metric[image, to_merge] @ metric[image, targets].T).topk(min(2, m), dim=1).values
            if m > 1 and (nearest[:, 0] - nearest[:, 1] < gap).any():
                return False
        return True


@torch.no_grad()
def eager(model: nn.Module, pixel_values: Tensor, layer: int) -> Eager:
    """From the attention matrices that the encoder gives away when asked, of an untouched copy."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    depth = layer % (LAYERS + 1)
    outputs = model(pixel_values, output_hidden_states=True, output_attentions=True)
    hidden, attn = outputs.hidden_states[layer], outputs.attentions[depth - 1]
    if getattr(model.config, "num_register_tokens", 0):
        attn = without_registers(model, without_registers(model, attn).mT).mT
        attn = attn / attn.sum(-1, keepdim=True)
    _, keys = attention_inputs(model, pixel_values, depth)
    return Eager(without_registers(model, hidden), keys, attn, has_cls(model))


@torch.no_grad()
def attention_inputs(model: nn.Module, pixel_values: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """Queries and keys (B, H, S, D) of a layer, 1 the first, made of what its projections give; registers left out."""
    model = copy.deepcopy(model)
    seen = {}
    for name, module in layers_of(model)[depth - 1].named_modules():
        if name.endswith(("q_proj", "query", "k_proj", "key")):
            which = "queries" if "q" in name.split(".")[-1] else "keys"
            module.register_forward_hook(lambda module, args, output, which=which: seen.update({which: output}))
    model(pixel_values)
    queries, keys = (seen[which].unflatten(2, (HEADS, -1)).transpose(1, 2) for which in ("queries", "keys"))
    if hasattr(model, "rope_embeddings"):
        queries, keys = apply_rotary_pos_emb(queries, keys, *model.rope_embeddings(pixel_values))
    return without_registers(model, queries), without_registers(model, keys)


def pixels(rng: torch.Generator, count: int = 2, height: int = IMAGE_SIZE, width: int = IMAGE_SIZE) -> Tensor:
    """Images (count, 3, height, width)."""
    return torch.randn(count, 3, height, width, generator=rng)


def clear_pixels(rng: torch.Generator, model: nn.Module, layer: int, k: int, m: int) -> tuple[Tensor, Eager]:
    """Images in which no near tie leaves a decision to rounding, and VisionZip's inputs for them."""
    for _ in range(20):
        images = pixels(rng)
        inputs = eager(model, images, layer)
        if inputs.is_clear(k, m):
            return images, inputs
    raise AssertionError("20 times images with near ties: they ought to be rare")


def has_cls(model: nn.Module) -> bool:
    """Whether an encoder's token 0 is CLS."""
    return model.config.model_type != "siglip_vision_model"


def without_registers(model: nn.Module, x: Tensor) -> Tensor:
    """Features (..., tokens, channels) of an encoder, less its register tokens, which follow CLS."""
    registers = getattr(model.config, "num_register_tokens", 0)
    return torch.cat([x[..., :1, :], x[..., 1 + registers :, :]], -2) if registers else x


@torch.no_grad()
def hidden_states(model: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """Of an untouched copy, registers left out."""
    states = copy.deepcopy(model)(images, output_hidden_states=True).hidden_states
    return tuple(without_registers(model, x) for x in states)


def copy_of(model: nn.Module) -> nn.Module:
    """An equal encoder, unwrapped."""
    twin = type(model)(model.config).eval()
    twin.load_state_dict(model.state_dict())
    return twin


class Tower(nn.Module):
    """Holds a vision model like the tower of the original LLaVA repositories."""

    def __init__(self, vision_tower: nn.Module | None, select_layer: int = -2):
        super().__init__()
        self.select_layer = select_layer
        if vision_tower is not None:
            self.vision_tower = vision_tower
