"""A whole vision encoder with compressed output: this library's wrapper, and the released implementation's way.

Both run the same weights, of a CLIP made from its configuration and random numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from benchmarks import pytorch_forms
from benchmarks.cases import BUDGETS, DTYPES, Case
from visionzip_ext import VisionZipEncoder
from visionzip_ext.integrations.transformers.towers.layer_stack import LayerStack

LAYER = -2
"""Whose output is taken, as in LLaVA."""

EncoderCall = Callable[[Tensor], Tensor]
"""Pixel values (B, 3, height, width) -> tokens (B, k + m, C)."""


@dataclass(frozen=True)
class EncoderCase:
    """An encoder, how many tiles it sees at a time, and what is left of each."""

    model: str
    channels: int
    layers: int
    heads: int
    image_size: int
    patch: int
    tiles: int
    k: int
    m: int
    dtype: torch.dtype
    device: str = "cpu"

    @property
    def name(self) -> str:
        """Unique."""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"encoder/{self.model}/B{self.tiles}/k{self.k}-m{self.m}/{dtype}"

    def compression(self, tiles: int) -> Case:
        """What is left for the released steps to do once the encoder has run."""
        tokens = (self.image_size // self.patch) ** 2 + 1
        sizes = {"B": tiles, "S": tokens, "C": self.channels, "H": self.heads, "D": self.channels // self.heads}
        return Case(model=self.model, op="zip", k=self.k, m=self.m, dtype=self.dtype, **sizes)

    def encoder(self, seed: int = 0) -> CLIPVisionModel:
        """With random weights; those of queries and keys are so large that attention is not uniform."""
        torch.manual_seed(seed)
        config = CLIPVisionConfig(
            hidden_size=self.channels,
            intermediate_size=4 * self.channels,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            image_size=self.image_size,
            patch_size=self.patch,
        )
        model = CLIPVisionModel(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("q_proj.weight", "k_proj.weight")):
                    parameter.normal_(std=self.channels**-0.5)
        return model.to(self.device, self.dtype)

    def pixels(self, tiles: int, seed: int = 0) -> Tensor:
        """Random ones."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(tiles, 3, self.image_size, self.image_size, generator=generator).to(self.device, self.dtype)


LARGE = {"model": "clip-vit-l-336", "channels": 1024, "layers": 24, "heads": 16, "image_size": 336, "patch": 14}
TINY = {"model": "tiny", "channels": 64, "layers": 6, "heads": 4, "image_size": 336, "patch": 14}


def encoder_cases(device: str = "cpu") -> list[EncoderCase]:
    """LLaVA-NeXT's five tiles of an image; on a GPU also in float16, as LLaVA's checkpoints are."""
    (k, m), *_ = BUDGETS
    dtypes = (*DTYPES, torch.float16) if device == "cuda" else DTYPES
    return [EncoderCase(**LARGE, tiles=5, k=k, m=m, dtype=dtype, device=device) for dtype in dtypes]


def quick_encoder_cases(device: str = "cpu") -> list[EncoderCase]:
    """The same at sizes that take little time."""
    return [EncoderCase(**TINY, tiles=2, k=54, m=10, dtype=dtype, device=device) for dtype in DTYPES]


def ours(case: EncoderCase, model: CLIPVisionModel) -> EncoderCall:
    """This library's wrapper: the encoder's own attention, no layer after the one that is taken."""
    wrapped = VisionZipEncoder(twin_of(model), case.k, case.m, layer=LAYER)
    return lambda pixels: wrapped(pixels).tokens


def released(case: EncoderCase, model: CLIPVisionModel) -> EncoderCall:
    """The released implementation's way: eager attention, all matrices and states of all layers; then its steps."""
    model = twin_of(model)
    model.set_attn_implementation("eager")
    keys: list[Tensor] = []
    projection = LayerStack(model).attention_of(case.layers + LAYER).k_proj
    projection.register_forward_hook(lambda module, args, output: keys.append(output))

    def call(pixels: Tensor) -> Tensor:
        outputs = model(pixels, output_hidden_states=True, output_attentions=True)
        inputs = {
            "hidden": outputs.hidden_states[LAYER],
            "keys": keys.pop().unflatten(2, (case.heads, -1)).transpose(1, 2),
            "attn": outputs.attentions[LAYER],
        }
        return pytorch_forms.released(case.compression(len(pixels)), inputs)

    return call


PROVIDERS = {"ours": ours, "released": released}


def twin_of(model: CLIPVisionModel) -> CLIPVisionModel:
    """Another model with the same weights, which exist once."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
