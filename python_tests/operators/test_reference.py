"""The reference against a calculation by hand, against the oracle in float64, and as what serves other devices."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from support import oracle
from support.inputs import CARRYING, DECIDING, OPS, SHAPES, SMALL, Shape, random_call, random_keys
from support.packed import Mix, random_packed_call

from visionzip_ext import reference
from visionzip_ext._registration import fallback as _fallback

# Eight tokens, CLS first. Attention keeps 0, 2 and 5; 1, 3, 4, 6 and 7 remain; the first and the third of them (step 2)
# are the targets: 1 and 4. By their keys, 3 is nearest to 4, and 6 and 7 are to 1.
SCORES = [9.0, 1.0, 7.0, 2.0, 3.0, 8.0, 0.5, 0.1]
KEYS = [[0, 0], [1, 0], [0, 0], [-1, 5], [0, 2], [0, 0], [3, 1], [2, -4]]
HIDDEN = [[1.0], [10.0], [100.0], [1000.0], [3.0], [30.0], [300.0], [3000.0]]
INDICES = [0, 2, 5]
ASSIGNMENT = [0, 3, 1, 4, 4, 2, 3, 3]
TOKENS = {
    "residual": [1, 100, 30, 10 + (300 + 3000) / 2, 3 + 1000],
    "mean": [1, 100, 30, (10 + 300 + 3000) / 3, (3 + 1000) / 2],
}


@pytest.mark.parametrize("merge", TOKENS)
def test_by_hand(merge):
    hidden, keys, scores = torch.tensor([HIDDEN]), torch.tensor([KEYS]).float(), torch.tensor([SCORES])
    tokens, indices, assignment = reference.zip(hidden, keys, scores, 3, 2, merge=merge)
    assert indices.tolist() == [INDICES]
    assert assignment.tolist() == [ASSIGNMENT]
    torch.testing.assert_close(tokens[0, :, 0], torch.tensor(TOKENS[merge]).float())


def test_scores_by_hand():
    attn = torch.arange(18.0).view(1, 2, 3, 3)
    assert reference.attention_scores(attn, True).tolist() == [[0 + 9, 1 + 10, 2 + 11]]
    columns = [sum(range(j, 18, 3)) / 6 for j in range(3)]
    assert reference.attention_scores(attn, False)[0].tolist() == pytest.approx(columns)
    assert reference.attention_scores(attn[:, :, 0], True).tolist() == [[9, 11, 13]]
    assert reference.attention_scores(attn[:, 0, 0], True).tolist() == [[0, 1, 2]]


def test_scores_of_queries_by_hand():
    queries = torch.tensor([[[[1.0], [2.0]]]])
    keys = torch.tensor([[[[0.0], [math.log(3)]]]])
    first, second = (1 / 4, 3 / 4), (1 / 10, 9 / 10)  # softmax of (0, log 3) and of (0, log 9)
    assert reference.qk_scores(queries, keys, 1.0, True)[0].tolist() == pytest.approx(first)
    both = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    assert reference.qk_scores(queries, keys, 1.0, False)[0].tolist() == pytest.approx(both)
    halved = reference.qk_scores(queries * 2, keys, 0.5, False)[0].tolist()
    assert halved == pytest.approx(both)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape.S < 600], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_float64(rng, op, shape):
    """In float64 the reference keeps what the oracle keeps, exactly, and computes in float64 throughout."""
    call = random_call(op, rng, shape)
    wide = {name: x.double() if x.is_floating_point() else x for name, x in call.tensors.items()}
    call = call.with_tensors(**wide)
    results = call.through(reference)
    k, m, assignment = shape.k, shape.m, call.tensors.get("assignment")
    if op not in CARRYING:
        indices, assignment = results[-2:]
        oracle.check_indices_exactly(indices, oracle.score(call).value, shape.has_cls)
        oracle.check_assignment(assignment, indices, call.tensors["keys"], k, m)
    if op in DECIDING:
        return
    matrix = oracle.weights(assignment, k, m, "residual")
    x = call.args[0].flatten(2)
    tokens = results if isinstance(results, torch.Tensor) else results[0]
    expected = matrix.mT @ x if op == "merge_backward" else matrix @ x
    torch.testing.assert_close(tokens, expected, rtol=1e-12, atol=1e-12)


def test_the_metric_is_the_mean_over_heads(rng):
    keys = random_keys(rng, SMALL)
    torch.testing.assert_close(reference.head_mean(keys), keys.mean(1))
    assert torch.equal(reference.head_mean(keys[:, 0]), keys[:, 0])


def test_chunks_of_queries_are_invisible(rng, monkeypatch):
    """The attention matrix exists a few rows at a time; how many does not matter."""
    call = random_call("select_qk", rng, Shape(B=2, S=70, C=1, H=2, D=8, k=5, m=3, has_cls=False), lse=True)
    queries, keys, lse = (call.tensors[name] for name in ("queries", "keys", "lse"))
    for given in (None, lse):
        scores = []
        for rows in (1, 7, 69, 70, 128):
            monkeypatch.setattr(reference, "_QUERY_CHUNK", rows)
            scores.append(reference.qk_scores(queries, keys, 0.3, False, given))
        for other in scores[1:]:
            torch.testing.assert_close(other, scores[0])


@pytest.mark.parametrize("D", [16, 24, 0])
@pytest.mark.parametrize("op", ["zip_qk", "select_qk"])
def test_the_default_scale(backend, rng, op, D):
    """D ** -0.5, to the last bit."""
    call = random_call(op, rng, Shape(B=2, S=41, C=20, H=3, D=D, k=7, m=5))
    without = replace(call, options={name: x for name, x in call.options.items() if name != "scale"})
    for own, given in zip(without.on(backend), call.on(backend), strict=True):
        assert torch.equal(own, given)


@pytest.mark.parametrize("D", [16, 24])
@pytest.mark.parametrize("op", ["zip_packed", "select_packed"])
def test_the_default_scale_of_packed_images(backend, rng, op, D):
    call = random_packed_call(op, rng, Mix((41, 7, 30), (7, 3, 9), (5, 2, 4), D=D))
    without = replace(call, options={name: x for name, x in call.options.items() if name != "scale"})
    for own, given in zip(without.on(backend), call.on(backend), strict=True):
        assert torch.equal(own, given)


@pytest.mark.parametrize("op", OPS)
def test_devices_without_a_kernel_take_the_reference(rng, op):
    """The fallback adds checks, and gives what the reference gives."""
    call = random_call(op, rng, SMALL)
    fallback = _fallback.KERNELS[op](*call.args, **call.kwargs)
    direct = call.through(reference)
    torch.testing.assert_close(fallback, direct)
