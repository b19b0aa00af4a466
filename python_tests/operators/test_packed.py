"""The operators on packed images: right, and for each image the same bits as alone and as in a batch."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from support import packed
from support.backends import CPU, EMULATED
from support.inputs import BF16, DTYPES, F16, F32, MERGE_WORDS, dtype_name, normal
from support.packed import CARRYING_PACKED, MIXES, PACKED_OPS, SOURCES, Mix, PackedCall, random_packed_call
from test_layouts import LAYOUTS

from visionzip_ext import packed_reference
from visionzip_ext._registration import fallback as _fallback

OPS_AND_SOURCES = pytest.mark.parametrize(
    ("op", "source"),
    [(op, source) for op in PACKED_OPS for source in (("none",) if op in CARRYING_PACKED else SOURCES)],
)


def assert_same(actual, expected) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("mix", MIXES, ids=str)
@OPS_AND_SOURCES
def test_every_mix(backend, rng, op, source, mix, dtype):
    call = random_packed_call(op, rng, mix, (dtype, dtype), source=source)
    packed.check(call, call.on(backend))


@pytest.mark.parametrize("merge", MERGE_WORDS)
@pytest.mark.parametrize("op", ["zip_packed", *CARRYING_PACKED])
def test_both_merges(backend, rng, op, merge):
    call = random_packed_call(op, rng, MIXES[0], (BF16, F16), merge=merge)
    packed.check(call, call.on(backend))


@pytest.mark.parametrize("dtype", [F32, BF16], ids=dtype_name)
@pytest.mark.parametrize("mix", [mix for mix in MIXES if mix.group == 1], ids=str)
@OPS_AND_SOURCES
def test_the_same_bits_as_in_a_batch(bitwise_backend, rng, op, source, mix, dtype):
    call = random_packed_call(op, rng, mix, (dtype, dtype), source=source)
    results = call.on(bitwise_backend)
    for i in range(len(mix.lengths)):
        if mix.k[i] + mix.m[i]:
            assert_same(packed.of_image(call, i, results), packed.image(call, i).on(bitwise_backend))


def rearranged(call: PackedCall, order: list[int]) -> PackedCall:
    """The same images in another order, any of them several times or never."""
    starts, rows = call.starts, call.row_starts
    group = call.group

    def pick(x: torch.Tensor, bounds: list[int], dim: int = 0, factor: int = 1) -> torch.Tensor:
        parts = [x.narrow(dim, 0, 0)]
        parts += [x.narrow(dim, bounds[i] * factor, (bounds[i + 1] - bounds[i]) * factor) for i in order]
        return torch.cat(parts, dim)

    tensors = {}
    for name, x in call.tensors.items():
        if name == "cu_seqlens":
            tensors[name] = packed.cu_seqlens_of(tuple(starts[i + 1] - starts[i] for i in order))
        elif name == "grad":
            tensors[name] = pick(x, rows)
        elif name in ("hidden", "x"):
            tensors[name] = pick(x, starts)
        elif name == "assignment":
            first, parts = 0, [x[:0]]
            for i in order:
                own = packed.own_rows(x[starts[i] : starts[i + 1]], rows[i])
                parts.append(torch.where(own < 0, -1, own + first))
                first += rows[i + 1] - rows[i]
            tensors[name] = torch.cat(parts)
        else:
            tensors[name] = pick(x, starts, 1 if name == "lse" else 0, group)
    return PackedCall(call.op, tensors, [call.k[i] for i in order], [call.m[i] for i in order], call.options)


FORTY_TIMES = Mix((400, 10, 10, 10), (30, 3, 3, 3), (9, 2, 2, 2), H=2, D=24)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=dtype_name)
@pytest.mark.parametrize("mix", [MIXES[0], MIXES[1], FORTY_TIMES, MIXES[7]], ids=str)
@OPS_AND_SOURCES
def test_neighbours_do_not_matter(bitwise_backend, rng, op, source, mix, dtype):
    """Alone, in reversed order, several times, between many others: an image gives the same bits."""
    call = random_packed_call(op, rng, mix, (dtype, dtype), source=source)
    results = call.on(bitwise_backend)
    last = len(mix.lengths) - 1
    orders = [[i] for i in range(last + 1)]
    orders += [list(range(last, -1, -1)), [1, 0, 1, 1, last, 0], [i % (last + 1) for i in range(13)]]
    for order in orders:
        other = rearranged(call, order)
        others = other.on(bitwise_backend)
        for place, i in enumerate(order):
            assert_same(packed.of_image(other, place, others), packed.of_image(call, i, results))


@pytest.mark.parametrize("mix", [MIXES[0], MIXES[5], MIXES[7]], ids=str)
@OPS_AND_SOURCES
def test_nothing_leaks_out_of_an_image(bitwise_backend, rng, op, source, mix):
    """One image's values turn to NaN; every other image's results stay the same, to the bit."""
    call = random_packed_call(op, rng, mix, source=source)
    results = call.on(bitwise_backend)
    spoilt = 2
    start, stop = call.starts[spoilt : spoilt + 2]
    rows = call.row_starts
    tensors = {}
    for name, x in call.tensors.items():
        if not x.is_floating_point():
            continue
        factor = len(x) // max(call.starts[-1], 1) if name != "grad" else 1
        own = slice(rows[spoilt], rows[spoilt + 1]) if name == "grad" else slice(start * factor, stop * factor)
        tensors[name] = x.clone()
        tensors[name][own] = float("nan")
    others = call.with_tensors(**tensors).on(bitwise_backend)
    for i in range(len(mix.lengths)):
        if i != spoilt:
            assert_same(packed.of_image(call, i, others), packed.of_image(call, i, results))


@pytest.mark.parametrize("mix", [MIXES[0], MIXES[5], MIXES[8], MIXES[9]], ids=str)
@OPS_AND_SOURCES
def test_any_number_of_threads(rng, threads, op, source, mix):
    call = random_packed_call(op, rng, mix, source=source)
    threads(1)
    expected = call.on(CPU)
    for number in (2, 3, 8):
        threads(number)
        assert_same(call.on(CPU), expected)


@pytest.mark.parametrize("mix", [MIXES[1], MIXES[5], MIXES[7]], ids=str)
@pytest.mark.parametrize("source", SOURCES)
def test_max_seqlen_changes_no_bit(bitwise_backend, rng, source, mix):
    """Unknown, exact, or any number above."""
    call = random_packed_call("zip_packed", rng, mix, source=source)
    expected = call.on(bitwise_backend)
    for max_seqlen in (None, max(mix.lengths) + 300, 2**40):
        bounded = replace(call, options={**call.options, "max_seqlen": max_seqlen})
        assert_same(bounded.on(bitwise_backend), expected)


def test_a_thousand_images(backend, rng, monkeypatch):
    if backend is EMULATED:
        monkeypatch.setenv("VISIONZIP_PLAN", "path=block")  # the least work for the host
    lengths = torch.randint(0, 40, (1000,), generator=rng).tolist()
    k, m = ([int(S * share) for S in lengths] for share in (0.4, 0.3))
    call = random_packed_call("zip_packed", rng, Mix(tuple(lengths), tuple(k), tuple(m), C=4, H=1, D=4))
    packed.check(call, call.on(backend))


@pytest.mark.parametrize("op", PACKED_OPS)
def test_one_number_for_all(backend, rng, op):
    mix = Mix((30, 41, 25), (7, 7, 7), (5, 5, 5))
    call = random_packed_call(op, rng, mix)
    short = PackedCall(op, call.tensors, [7], [5], call.options)
    assert_same(short.on(backend), call.on(backend))


@pytest.mark.parametrize("layout", LAYOUTS)
@OPS_AND_SOURCES
def test_layouts(backend, rng, op, source, layout):
    call = random_packed_call(op, rng, MIXES[0], source=source)
    laid_out = call.with_tensors(**{name: LAYOUTS[layout](x) for name, x in call.tensors.items()})
    assert_same(laid_out.on(backend), call.on(backend))


def test_queries_and_keys_of_different_dtypes(backend, rng):
    call = random_packed_call("select_packed", rng, MIXES[0])
    call = call.with_tensors(keys=call.tensors["keys"].bfloat16())
    packed.check(call, call.on(backend))


def test_keys_without_heads(backend, rng):
    call = random_packed_call("zip_packed", rng, MIXES[7], source="scores")
    call = call.with_tensors(keys=normal(rng, MIXES[7].T * 4, 24, dtype=F16))
    packed.check(call, call.on(backend))


@pytest.mark.parametrize("rest", [(), (1,), (3, 5), (0,), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("op", CARRYING_PACKED)
def test_any_number_of_dimensions(backend, rng, op, rest):
    """The same numbers as with all of them in one dimension."""
    call = random_packed_call(op, rng, MIXES[0])
    name = "x" if op == "merge_packed" else "grad"
    x = normal(rng, len(call.tensors[name]), *rest, dtype=BF16)
    flat = x.reshape(len(x), torch.Size(rest).numel())
    (out,), (expected,) = (call.with_tensors(**{name: each}).on(backend) for each in (x, flat))
    assert out.shape[1:] == rest
    assert torch.equal(out.reshape(expected.shape), expected)


@pytest.mark.parametrize("source", SOURCES)
def test_a_group_of_one_is_none(backend, rng, source):
    call = random_packed_call("zip_packed", rng, MIXES[0], source=source)
    without = PackedCall(call.op, call.tensors, call.k, call.m, {**call.options})
    del without.options["group"]
    assert_same(without.on(backend), call.on(backend))


def test_grouped_scores_add_up_by_hand(backend):
    """Two images of two and three tokens, two cells each; the third token of the second image is best by its sum."""
    scores = torch.tensor([1.0, 4.0, 2.0, 2.0, 0.0, 3.0, 1.0, 1.0, 2.5, 2.5])
    keys = torch.ones(10, 2)
    cu_seqlens = torch.tensor([0, 2, 5], dtype=torch.int32)
    call = PackedCall(
        "select_packed", {"keys": keys, "cu_seqlens": cu_seqlens, "scores": scores}, [1, 1], [0, 1], {"group": 2}
    )
    indices, assignment, rows = call.on(backend)
    assert indices.tolist() == [0, 4]
    assert assignment.tolist() == [0, -1, 2, 2, 1]
    assert rows.tolist() == [0, 1, 3]


def test_a_decision_is_carried_out_on_another_tensor(backend, rng):
    call = random_packed_call("zip_packed", rng, MIXES[0])
    tokens, _, assignment, _ = call.on(backend)
    arguments = {"x": call.tensors["hidden"], "assignment": assignment, "cu_seqlens": call.tensors["cu_seqlens"]}
    again = PackedCall("merge_packed", arguments, call.k, call.m, {"merge": "residual"})
    assert torch.equal(again.on(backend)[0], tokens)


@pytest.mark.parametrize("mix", [MIXES[3], MIXES[7]], ids=str)
@OPS_AND_SOURCES
def test_devices_without_a_kernel_take_the_reference(rng, op, source, mix):
    """The fallback adds checks, and gives what the reference gives."""
    call = random_packed_call(op, rng, mix, source=source)
    fallback = _fallback.KERNELS[op](*call.args, **call.kwargs)
    torch.testing.assert_close(fallback, call.through(packed_reference))


@st.composite
def mixes(draw: st.DrawFn) -> Mix:
    """Up to six images of up to sixty tokens, or now and then a long one."""
    lengths = draw(st.lists(st.one_of(st.integers(0, 60), st.sampled_from((0, 1, 400))), max_size=6))
    has_cls = draw(st.booleans())
    k, m = [], []
    for S in lengths:
        rows = draw(st.integers(0, S))
        merged = draw(st.integers(0, max(0, rows - 1) if has_cls else rows))
        k.append(rows - merged)
        m.append(merged)
    sizes = {"C": st.integers(0, 40), "H": st.integers(1, 4), "D": st.integers(1, 40)}
    group = 1 if has_cls else draw(st.integers(1, 4))
    sizes = {name: draw(size) for name, size in sizes.items()}
    return Mix(tuple(lengths), tuple(k), tuple(m), group=group, has_cls=has_cls, **sizes)


@settings(max_examples=150)
@given(mix=mixes(), data=st.data())
def test_any_call(backend, mix, data):
    op = data.draw(st.sampled_from(PACKED_OPS))
    dtypes = data.draw(st.tuples(*[st.sampled_from(DTYPES)] * 2))
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    options = {"merge": data.draw(st.sampled_from(MERGE_WORDS)), "source": data.draw(st.sampled_from(SOURCES))}
    call = random_packed_call(op, rng, mix, dtypes, **options)
    packed.check(call, call.on(backend))
