"""VisionZipEncoder under torch.compile, autograd and gradient checkpointing."""

from __future__ import annotations

import copy

import pytest
import torch
from support.tiny_encoders import (
    layers_of,
    pixels,
    without_registers,
)
from support.tiny_models import LAYERS
from torch._dynamo.testing import CompileCounterWithBackend

from visionzip_ext import VisionZipEncoder, reference

K, M = 6, 2


class TestTorch:
    def test_compiled_in_one_graph(self, encoder, rng):
        images = pixels(rng)
        wrapped = VisionZipEncoder(encoder, K, M)
        torch._dynamo.reset()
        compiled = torch.compile(wrapped, backend="aot_eager", fullgraph=True)
        with torch.no_grad():
            expected = wrapped(images)
            got = compiled(images)
        torch.testing.assert_close(got.tokens, expected.tokens)
        assert torch.equal(got.decision.indices, expected.decision.indices)
        assert torch.equal(got.decision.assignment, expected.decision.assignment)
        with torch.no_grad():
            assert torch.equal(wrapped(images).tokens, expected.tokens)
        assert len(layers_of(encoder)) == LAYERS

    def test_a_compiled_encoder_in_its_place(self, encoder, rng):
        images = pixels(rng)
        wrapped = VisionZipEncoder(encoder, K, M)
        torch._dynamo.reset()
        graphs = CompileCounterWithBackend("aot_eager")
        with torch.no_grad():
            expected = wrapped(images).tokens
            wrapped.encoder = torch.compile(wrapped.encoder, backend=graphs, fullgraph=True)
            torch.testing.assert_close(wrapped(images).tokens, expected)
        assert graphs.frame_count == 1

    def test_gradients_are_those_of_plain_pytorch_with_the_same_decision(self, encoder, rng):
        images = pixels(rng)
        untouched = copy.deepcopy(encoder)
        zipped = VisionZipEncoder(encoder, K, M)(images)
        (zipped.tokens**2).sum().backward()
        state = without_registers(encoder, untouched(images, output_hidden_states=True).hidden_states[-2])
        (reference.merge(state, zipped.decision.assignment, K, M) ** 2).sum().backward()
        expected = {name: p.grad for name, p in untouched.named_parameters() if p.grad is not None}
        got = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
        assert got.keys() == expected.keys()
        assert len(got) > 10 * (LAYERS - 1)
        largest = max(float(gradient.abs().max()) for gradient in expected.values())
        for name, gradient in expected.items():
            torch.testing.assert_close(
                got[name], gradient, rtol=1e-3, atol=1e-6 * largest, msg=lambda text, name=name: f"{name}: {text}"
            )

    @pytest.mark.parametrize("use_reentrant", [True, False])
    def test_gradient_checkpointing(self, encoder, rng, use_reentrant):
        images = pixels(rng)
        wrapped = VisionZipEncoder(encoder, K, M).train()
        wrapped(images).tokens.square().sum().backward()
        expected = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
        wrapped.zero_grad()
        encoder.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        runs = []
        for name, module in layers_of(encoder)[0].named_modules():
            if name.endswith(("q_proj", "query")):
                module.register_forward_hook(lambda *call: runs.append(1))
        wrapped(images).tokens.square().sum().backward()
        assert len(runs) == 2, "nothing was recomputed, so nothing was tested"
        got = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
        assert got.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(got[name], gradient, msg=lambda text, name=name: f"{name}: {text}")
