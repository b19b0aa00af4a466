"""`residual` is what the released implementation computes: on random inputs and on the outputs of a real encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from support import oracle
from support.inputs import BF16, F16, F32, Call, Shape, random_call
from transformers import CLIPVisionConfig, CLIPVisionModel

SHAPES = (
    Shape(B=3, S=577, C=128, H=16, D=64, k=54, m=10),
    Shape(B=2, S=577, C=32, H=16, D=64, k=162, m=30),
    Shape(B=4, S=257, C=48, H=4, D=32, k=22, m=11),
    Shape(B=4, S=65, C=16, H=2, D=8, k=30, m=20),  # step 1
)


def clear(make: Callable[[], list[Call]]) -> list[Call]:
    """Calls in which no near tie leaves the decision to rounding, so that two implementations must agree on all."""
    for _ in range(100):
        calls = make()
        if all(map(oracle.is_clear, calls)):
            return calls
    raise AssertionError("100 times random calls with near ties: they ought to be rare")


def assert_agrees(call: Call, results: tuple[torch.Tensor, ...]) -> None:
    """With the released steps, computed in float64 from the same inputs."""
    wide = [call.tensors[name].double() for name in ("hidden", "keys", "attn")]
    expected, kept, joined = oracle.released_recipe(*wide, call.k, call.m)
    tokens, indices, assignment = results
    assert torch.equal(torch.zeros_like(kept).scatter_(1, indices, True), kept)
    rest = assignment[~kept].view(len(assignment), -1)
    merging = torch.ones(rest.shape[1], dtype=torch.bool)
    merging[oracle.target_ranks(rest.shape[1], call.m)] = False
    assert torch.equal(rest[:, merging] - call.k, joined)
    eps = torch.finfo(tokens.dtype).eps
    torch.testing.assert_close(tokens.double(), expected, rtol=2 * eps, atol=max(eps, 2e-6))


@pytest.mark.parametrize("dtypes", [(F32, F32, F32), (BF16, BF16, F32), (F16, F32, F32)], ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_random_inputs(backend, rng, shape, dtypes):
    """Image by image drawn anew until it is clear: of whole batches too few are."""
    images = [clear(lambda: [random_call("zip", rng, replace(shape, B=1), dtypes)])[0] for _ in range(shape.B)]
    tensors = {name: torch.cat([image.tensors[name] for image in images]) for name in images[0].tensors}
    call = replace(images[0], tensors=tensors)
    assert_agrees(call, call.on(backend))


@pytest.fixture(scope="module")
def encoder() -> CLIPVisionModel:
    """CLIP's vision tower from its configuration, small, with random weights that make attention attend."""
    config = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, image_size=140, patch_size=14
    )
    config._attn_implementation = "eager"  # gives its attention away
    model = CLIPVisionModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                parameter.normal_(std=0.15)
    return model


@torch.no_grad()
def encode(encoder: CLIPVisionModel, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """The select layer's output, queries, keys and attention: layer -2, whose output is `hidden_states[-2]`."""
    attention = [module for name, module in encoder.named_modules() if name.endswith("self_attn")][-2]
    seen = {}
    hooks = [
        getattr(attention, f"{name}_proj").register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
        for name in "qk"
    ]
    out = encoder(pixel_values=pixels, output_hidden_states=True, output_attentions=True)
    for hook in hooks:
        hook.remove()
    B, S, _ = seen["q"].shape
    queries, keys = (seen[name].view(B, S, attention.num_heads, -1).transpose(1, 2) for name in "qk")
    return {"hidden": out.hidden_states[-2], "queries": queries, "keys": keys, "attn": out.attentions[-2]}


@pytest.mark.parametrize(("k", "m"), [(16, 5), (54, 10)])
def test_a_real_encoder(backend, rng, encoder, k, m):
    """Its attention given, and from its queries and keys alone."""

    def encoded() -> list[Call]:
        tensors = encode(encoder, torch.randn(2, 3, 140, 140, generator=rng))
        options = {"has_cls": True, "merge": "residual"}
        given = {name: tensors[name] for name in ("hidden", "keys", "attn")}
        inside = {name: tensors[name] for name in ("hidden", "queries", "keys")}
        scale = tensors["queries"].shape[-1] ** -0.5
        return [Call("zip", given, k, m, options), Call("zip_qk", inside, k, m, {**options, "scale": scale})]

    given, inside = clear(encoded)
    results = given.on(backend)
    assert_agrees(given, results)
    torch.testing.assert_close(inside.on(backend), results, rtol=1e-6, atol=1e-6)


def test_the_number_of_rows_is_the_published_one(backend, rng):
    """Tables 8 and 9: 54 + 10 are 64 tokens, CLS among the 54."""
    for k, m, rows in ((54, 10, 64), (108, 20, 128), (162, 30, 192)):
        call = random_call("zip", rng, Shape(B=1, S=577, C=8, H=2, D=8, k=k, m=m))
        assert call.on(backend)[0].shape[1] == rows
