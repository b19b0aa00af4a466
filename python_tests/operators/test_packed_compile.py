"""The operators on packed images under opcheck, fake tensors, torch.compile and torch.export, and their gradients."""

from __future__ import annotations

import pytest
import torch
from support import oracle, packed
from support.inputs import BF16, DTYPES, F16, F32, MERGE_WORDS, dtype_name, normal
from support.packed import DECIDING_PACKED, PACKED_OPS, SOURCES, ZIPPING_PACKED, Mix, PackedCall, random_packed_call
from support.torch_checks import (
    TRANSFORMS,
    check_derivatives,
    check_fake_results,
    check_one_graph,
    check_saved_program,
    check_transform,
    differentiable,
    opcheck,
)
from torch import Tensor

import visionzip_ext

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")

MIXES = (
    Mix((41, 7, 13), (7, 3, 4), (5, 2, 0), C=6, H=2, D=4),
    Mix((12, 0, 9), (4, 0, 0), (3, 0, 2), C=3, H=1, D=4, group=4),
    Mix((12, 9), (4, 1), (3, 2), C=3, H=1, D=4, has_cls=True),
)
FIRST = {"zip_packed": "hidden", "merge_packed": "x", "merge_packed_backward": "grad"}


@pytest.mark.parametrize("requires_grad", [False, True], ids=["plain", "grad"])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("mix", MIXES, ids=str)
@pytest.mark.parametrize("op", PACKED_OPS)
def test_opcheck(dispatched_backend, rng, op, mix, source, requires_grad):
    call = random_packed_call(op, rng, mix, (BF16, F16), source=source, merge="mean")
    opcheck(call, dispatched_backend, requires_grad)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("mix", MIXES, ids=str)
@pytest.mark.parametrize("op", PACKED_OPS)
def test_fake_results_are_like_real_ones(dispatched_backend, rng, op, mix, source):
    check_fake_results(random_packed_call(op, rng, mix, (BF16, F32), source=source), dispatched_backend)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("op", PACKED_OPS)
def test_one_graph_for_every_length_and_budget(dispatched_backend, rng, op, source):
    """As many images each time, of any sizes and budgets."""
    sizes = {"C": 20, "H": 3, "D": 16}
    mixes = (
        Mix((41, 17, 30), (7, 3, 4), (5, 2, 6), **sizes),
        Mix((41, 17, 35), (7, 3, 5), (5, 2, 7), **sizes),
        Mix((130, 24, 300), (20, 8, 9), (15, 3, 10), **sizes),
    )
    check_one_graph(op, dispatched_backend, [random_packed_call(op, rng, mix, source=source) for mix in mixes])


@pytest.mark.parametrize("op", PACKED_OPS)
def test_one_graph_for_any_number_of_images_with_one_budget(dispatched_backend, rng, op):
    calls = []
    for lengths in ((41, 30), (20, 33, 25), (15, 90, 16, 17, 40)):
        n = len(lengths)
        # H is none of the other sizes: torch.compile takes sizes that are equal at first for the same one.
        call = random_packed_call(op, rng, Mix(lengths, (7,) * n, (5,) * n, H=5))
        calls.append(PackedCall(op, call.tensors, [7], [5], call.options))
    check_one_graph(op, dispatched_backend, calls)


def test_the_functions_compile_to_their_named_tuples(rng):
    call, decision = (random_packed_call(op, rng, MIXES[0]) for op in ("zip_packed", "select_packed"))
    torch._dynamo.reset()
    for function, of, result in (
        (visionzip_ext.zip_packed, call, visionzip_ext.PackedZipResult),
        (visionzip_ext.select_packed, decision, visionzip_ext.PackedDecision),
    ):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")(*of.args, **of.kwargs)
        assert isinstance(compiled, result)
        torch.testing.assert_close(compiled, function(*of.args, **of.kwargs), rtol=0, atol=0)


def test_inductor(rng):
    """The default backend end to end, the operator between other operations, with its gradient."""
    call = random_packed_call("zip_packed", rng, MIXES[0])

    def layer(hidden, keys, queries, cu_seqlens):
        result = visionzip_ext.zip_packed(hidden * 2, keys, cu_seqlens, call.k, call.m, queries=queries, scale=0.25)
        applied = visionzip_ext.merge_packed(hidden + 1, result.assignment, cu_seqlens, call.k, call.m, merge="mean")
        return result.tokens.tanh() + applied, result.indices

    results = []
    torch._dynamo.reset()
    rest = [call.tensors[name] for name in ("keys", "queries", "cu_seqlens")]
    for function in (layer, torch.compile(layer, fullgraph=True, dynamic=True)):
        hidden = call.tensors["hidden"].clone().requires_grad_()
        out, indices = function(hidden, *rest)
        results.append((out, indices, *torch.autograd.grad(out.square().sum(), hidden)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("op", ["zip_packed", "select_packed", "merge_packed"])
def test_export_with_any_number_of_tokens(rng, op):
    example = random_packed_call(op, rng, MIXES[0], bounded=False)

    class Module(torch.nn.Module):
        def forward(self, tensors):
            return getattr(torch.ops.visionzip, op)(
                *(tensors[name] for name in packed.POSITIONAL[op]),
                example.k,
                example.m,
                **{name: x for name, x in tensors.items() if name not in packed.POSITIONAL[op]},
                **example.options,
            )

    T = torch.export.Dim("T", min=MIXES[0].rows, max=8192)
    shapes = ({name: None if name == "cu_seqlens" else {0: T} for name in example.tensors},)
    exported = torch.export.export(Module(), (dict(example.tensors),), dynamic_shapes=shapes)
    assert f"visionzip.{op}.default" in [str(node.target) for node in exported.graph.nodes]
    mix = Mix((60, 50, 40), MIXES[0].k, MIXES[0].m, C=6, H=2, D=4)
    call = random_packed_call(op, rng, mix)
    eager = call.through(torch.ops.visionzip)
    torch.testing.assert_close(exported.module()(dict(call.tensors)), eager, rtol=0, atol=0)


@pytest.mark.parametrize("op", ZIPPING_PACKED + DECIDING_PACKED)
def test_an_exported_program_can_be_saved(rng, op):
    check_saved_program(getattr(visionzip_ext, op), random_packed_call(op, rng, MIXES[0]))


@pytest.mark.filterwarnings("ignore:Input #[01] requires gradient and is not a double precision")
@pytest.mark.parametrize("merge", MERGE_WORDS)
@pytest.mark.parametrize("mix", [Mix((11, 0, 6), (4, 0, 0), (3, 0, 2), C=2), Mix((7, 5), (2, 3), (1, 0), C=2)], ids=str)
@pytest.mark.parametrize("op", FIRST)
def test_gradcheck_and_gradgradcheck(dispatched_backend, rng, op, mix, merge):
    check_derivatives(random_packed_call(op, rng, mix, merge=merge), dispatched_backend)


@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented the batching rule")
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("op", FIRST)
def test_forward_mode_and_torch_func(dispatched_backend, rng, op, transform):
    mix = Mix((11, 0, 6), (4, 0, 0), (3, 0, 2), C=2)
    check_transform(random_packed_call(op, rng, mix, merge="mean"), dispatched_backend, transform)


@pytest.mark.parametrize("merge", MERGE_WORDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_gradient_of_hidden(dispatched_backend, rng, mix, dtype, merge):
    call = random_packed_call("zip_packed", rng, mix, (dtype, BF16), merge=merge)
    hidden = call.tensors["hidden"].requires_grad_()
    results = call.on(dispatched_backend)
    grad = normal(rng, *results[0].shape, dtype=dtype)
    results[0].backward(grad)
    assert not any(x.requires_grad for x in results[1:])
    for i in range(len(mix.lengths)):
        if mix.k[i] + mix.m[i] == 0:
            continue
        own = packed.of_image(call, i, results)
        rows, tokens = slice(*call.row_starts[i : i + 2]), slice(*call.starts[i : i + 2])
        batch_of_one = (hidden.grad[tokens].unsqueeze(0), grad[rows].unsqueeze(0), own[-1])
        oracle.check_merge_backward(*batch_of_one, mix.k[i], mix.m[i], merge)


@pytest.mark.parametrize("op", PACKED_OPS)
def test_nothing_else_has_a_gradient(dispatched_backend, rng, op):
    call = random_packed_call(op, rng, MIXES[0])
    for name, x in call.tensors.items():
        x.requires_grad_(x.is_floating_point() and name != FIRST.get(op))
    assert not any(x.requires_grad for x in call.on(dispatched_backend))


@pytest.mark.parametrize("op", FIRST)
def test_gradient_under_compile_and_checkpointing(dispatched_backend, rng, op):
    call = random_packed_call(op, rng, MIXES[0])
    first, function = differentiable(call, dispatched_backend)
    torch._dynamo.reset()

    def gradient(apply) -> Tensor:
        return torch.autograd.grad(apply(first).sin().sum(), first)[0]

    eager = gradient(function)
    assert torch.equal(gradient(torch.compile(function, fullgraph=True, backend="aot_eager")), eager)
    again = gradient(lambda x: torch.utils.checkpoint.checkpoint(function, x, use_reentrant=False))
    assert torch.equal(again, eager)
