"""torch.library.opcheck, fake kernels, torch.compile with dynamic sizes, torch.export."""

from __future__ import annotations

import inspect
import itertools
from dataclasses import replace

import pytest
import torch
from support.inputs import BF16, DECIDING, F16, F32, OPS, SMALL, ZIPPING, Call, Shape, random_call
from support.torch_checks import OPCHECKS, check_fake_results, check_one_graph, check_saved_program, opcheck

import visionzip_ext

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")

SHAPES = (
    SMALL,
    Shape(B=1, S=12, C=3, H=2, D=4, k=4, m=0),
    Shape(B=2, S=30, C=6, H=2, D=4, k=0, m=3, has_cls=False),
    Shape(B=2, S=16, C=6, H=1, D=4, k=9, m=7, has_cls=False),
)
FORMS = (  # dtypes of hidden, keys and attn; form of attn; form of keys; merge; lse
    ((F32, F32, F32), "matrix", "heads", "residual", False),
    ((BF16, F32, F16), "rows", "mean", "mean", True),
    ((F16, BF16, F32), "scores", "heads", "residual", True),
)


def calls(op: str, rng: torch.Generator, shape: Shape) -> list[Call]:
    return [
        random_call(op, rng, shape, dtypes, attn=attn, keys=keys, merge=merge, lse=lse)
        for dtypes, attn, keys, merge, lse in FORMS
    ]


@pytest.mark.parametrize("requires_grad", [False, True], ids=["plain", "grad"])
@pytest.mark.parametrize("shape", SHAPES[::2], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_opcheck(dispatched_backend, rng, op, shape, requires_grad):
    for call in calls(op, rng, shape):
        opcheck(call, dispatched_backend, requires_grad)


def test_opcheck_has_no_other_tests():
    assert set(OPCHECKS) >= set(torch.testing._internal.optests.generate_tests.DEFAULT_TEST_UTILS)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_fake_results_are_like_real_ones(dispatched_backend, rng, op, shape):
    for call in calls(op, rng, shape):
        check_fake_results(call, dispatched_backend)


@pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "mean"])
@pytest.mark.parametrize("op", OPS)
def test_one_graph_for_every_batch_and_length(dispatched_backend, rng, op, has_cls):
    sizes = ((2, 41), (3, 41), (3, 57), (5, 130))
    shapes = [Shape(B=B, S=S, C=20, H=3, D=16, k=7, m=5, has_cls=has_cls) for B, S in sizes]
    check_one_graph(op, dispatched_backend, [random_call(op, rng, shape) for shape in shapes])


@pytest.mark.parametrize("op", ZIPPING)
def test_one_graph_for_every_budget(dispatched_backend, rng, op):
    shapes = [Shape(B=2, S=41, C=20, H=3, D=16, k=k, m=m) for k, m in ((7, 5), (9, 4), (20, 11))]
    check_one_graph(op, dispatched_backend, [random_call(op, rng, shape) for shape in shapes])


@pytest.mark.parametrize("op", OPS)
def test_a_compiled_graph_of_good_sizes_says_what_is_wrong_with_others(dispatched_backend, rng, op):
    """Nothing is guarded, and the kernel checks: no other compilation, and the words of an eager call."""
    good = random_call(op, rng, Shape(B=2, S=41, C=20, H=3, D=16, k=7, m=5)).moved(dispatched_backend)
    compiled = torch.compile(getattr(torch.ops.visionzip, op), fullgraph=True, dynamic=True, backend="aot_eager")
    torch._dynamo.reset()
    compiled(*good.args, **good.kwargs)
    bad = replace(good, k=40)
    with (
        torch.compiler.set_stance("fail_on_recompile"),
        pytest.raises(RuntimeError, match=f"visionzip::{op}: k = 40 and m = 5 do not fit S = 41 tokens"),
    ):
        compiled(*bad.args, **bad.kwargs)


@pytest.mark.parametrize("op", ZIPPING)
def test_sizes_that_no_trace_knows(rng, op):
    """How many images there are, and k, come out of tensors."""
    call = random_call(op, rng, SMALL)

    class Module(torch.nn.Module):
        def forward(self, chosen, k, tensors):
            images = chosen.nonzero().squeeze(1)
            own = [x[images] for x in tensors]
            return getattr(torch.ops.visionzip, op)(*own, k.item(), call.m, **call.kwargs)

    args = (torch.tensor([True, False, True]), torch.tensor(call.k), list(call.tensors.values()))
    exported = torch.export.export(Module(), args).module()
    torch.testing.assert_close(exported(*args), Module()(*args), rtol=0, atol=0)
    with pytest.raises(RuntimeError, match=f"visionzip::{op}: k = 40 and m = 5 do not fit S = 41 tokens"):
        exported(args[0], torch.tensor(40), args[2])


@pytest.mark.parametrize("name", [name for name in visionzip_ext.__all__ if hasattr(torch.ops.visionzip, name)])
def test_keywords_of_functions_are_those_of_the_schemas(name):
    """With the same defaults, so that a call means the same on both ways."""
    schema = getattr(torch.ops.visionzip, name).default._schema.arguments
    of_schema = {argument.name: argument.default_value for argument in schema if argument.kwarg_only}
    parameters = inspect.signature(getattr(visionzip_ext, name)).parameters
    of_function = {p.name: p.default for p in parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert of_function == of_schema


def test_the_functions_compile_to_their_named_tuples(rng):
    call = random_call("zip", rng, SMALL)
    decision = random_call("select", rng, SMALL)
    torch._dynamo.reset()
    zipped = torch.compile(visionzip_ext.zip, fullgraph=True, backend="aot_eager")(*call.args)
    selected = torch.compile(visionzip_ext.select, fullgraph=True, backend="aot_eager")(*decision.args)
    assert isinstance(zipped, visionzip_ext.ZipResult)
    assert isinstance(selected, visionzip_ext.Decision)
    for compiled, eager in ((zipped, visionzip_ext.zip(*call.args)), (selected, visionzip_ext.select(*decision.args))):
        assert all(torch.equal(a, b) for a, b in zip(compiled, eager, strict=True))


def test_inductor(rng):
    """The default backend end to end, the operator between other operations, with its gradient."""
    call = random_call("zip_qk", rng, SMALL)

    def layer(hidden, queries, keys):
        tokens, indices, assignment = visionzip_ext.zip_qk(hidden * 2, queries, keys, call.k, call.m, scale=0.25)
        applied = visionzip_ext.merge(hidden + 1, assignment, call.k, call.m, merge="mean")
        return tokens.tanh() + applied, indices

    results = []
    torch._dynamo.reset()
    for function in (layer, torch.compile(layer, fullgraph=True, dynamic=True)):
        hidden = call.tensors["hidden"].clone().requires_grad_()
        out, indices = function(hidden, call.tensors["queries"], call.tensors["keys"])
        results.append((out, indices, *torch.autograd.grad(out.square().sum(), hidden)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("op", ["zip", "zip_qk", "select", "select_qk", "merge"])
def test_export_with_dynamic_sizes(rng, op):
    example = random_call(op, rng, SMALL)

    class Module(torch.nn.Module):
        def forward(self, tensors):
            return getattr(torch.ops.visionzip, op)(*tensors, example.k, example.m, **example.kwargs)

    B, S = torch.export.Dim("B", min=1, max=4096), torch.export.Dim("S", min=SMALL.k + SMALL.m, max=8192)
    dynamic = {
        "hidden": {0: B, 1: S},
        "x": {0: B, 1: S},
        "assignment": {0: B, 1: S},
        "queries": {0: B, 2: S},
        "keys": {0: B, 2: S},
        "attn": {0: B, 2: S, 3: S},
    }
    shapes = ([dynamic[name] for name in example.tensors],)
    exported = torch.export.export(Module(), (list(example.tensors.values()),), dynamic_shapes=shapes)
    targets = [str(node.target) for node in exported.graph.nodes]
    assert f"visionzip.{op}.default" in targets
    for B, S in ((1, 41), (4, 90)):
        call = random_call(op, rng, Shape(B=B, S=S, C=20, H=3, D=16, k=example.k, m=example.m))
        eager = call.through(torch.ops.visionzip)
        result = exported.module()(list(call.tensors.values()))
        torch.testing.assert_close(result, eager, rtol=0, atol=0)


@pytest.mark.parametrize("op", ZIPPING + DECIDING)
def test_an_exported_program_can_be_saved(rng, op):
    check_saved_program(getattr(visionzip_ext, op), random_call(op, rng, SMALL))


def test_autograd_does_not_see_a_view_of_its_input(rng):
    """An operator's results must not share memory with its arguments, not even where it changes nothing."""
    for op, (k, m) in itertools.product(ZIPPING, ((41, 0), (7, 5))):
        call = random_call(op, rng, Shape(B=2, S=41, C=20, H=3, D=16, k=k, m=m))
        results = call.through(torch.ops.visionzip)
        pointers = {x.untyped_storage().data_ptr() for x in call.tensors.values()}
        assert not pointers & {x.untyped_storage().data_ptr() for x in results}
