"""Hypothesis: any shape, mixture of dtypes and layout, with ties, NaN, infinities and keys of length zero."""

from __future__ import annotations

import math
from dataclasses import dataclass

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from support import oracle
from support.inputs import ATTN_FORMS, CARRYING, DTYPES, KEYS_FORMS, MERGE_WORDS, OPS, Call, Shape, random_call
from test_layouts import LAYOUTS
from torch import Tensor


@dataclass(frozen=True)
class Spice:
    """What is done to the scores' and keys' values."""

    few_values: bool
    equal_keys: bool
    zero_keys: bool
    nan: bool
    infinite: bool

    def on_keys(self, keys: Tensor, rng: torch.Generator) -> Tensor:
        """Some tokens (dimension -2) get another's key, a key of zeros, or a NaN."""
        keys, S = keys.clone(), keys.shape[-2]
        if self.few_values:
            keys = keys.round()
        if self.equal_keys:
            keys = keys[..., torch.randint(S, (S,), generator=rng), :]
        if self.zero_keys:
            keys[..., torch.randint(S, (max(1, S // 4),), generator=rng), :] = 0
        if self.nan and keys.numel():
            keys[..., torch.randint(S, (1,), generator=rng), -1] = math.nan
        return keys

    def on_attention(self, attn: Tensor, rng: torch.Generator) -> Tensor:
        """Some tokens (dimension -1) get equal scores, NaN, or infinities."""
        attn, S = attn.clone(), attn.shape[-1]
        if self.few_values:
            attn = (attn * 4).round() / 4
        if self.nan:
            attn[..., torch.randint(S, (max(1, S // 5),), generator=rng)] = math.nan
        if self.infinite:
            attn[..., torch.randint(S, (1,), generator=rng)] = math.inf
            attn[..., torch.randint(S, (1,), generator=rng)] = -math.inf
        return attn


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """Any that the specification allows, up to about a hundred tokens."""
    S, has_cls = draw(st.integers(1, 100)), draw(st.booleans())
    k = draw(st.integers(1 if has_cls else 0, S))
    m = draw(st.integers(0 if k else 1, S - k))
    sizes = {"B": st.integers(0, 4), "C": st.integers(0, 40), "H": st.integers(1, 5), "D": st.integers(1, 40)}
    return Shape(S=S, k=k, m=m, has_cls=has_cls, **{name: draw(size) for name, size in sizes.items()})


@st.composite
def calls(draw: st.DrawFn) -> Call:
    """Any call, its values spiced, its tensors laid out somehow."""
    op, shape = draw(st.sampled_from(OPS)), draw(shapes())
    dtypes = draw(st.tuples(*[st.sampled_from(DTYPES)] * 3))
    forms = {"attn": draw(st.sampled_from(ATTN_FORMS)), "keys": draw(st.sampled_from(KEYS_FORMS))}
    options = {"merge": draw(st.sampled_from(MERGE_WORDS)), "lse": draw(st.booleans())}
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    call = random_call(op, rng, shape, dtypes, **forms, **options)
    if op not in CARRYING:
        spice = draw(st.builds(Spice, *[st.booleans()] * 5))
        tensors = {"keys": spice.on_keys(call.tensors["keys"], rng)}
        if "attn" in call.tensors:
            tensors["attn"] = spice.on_attention(call.tensors["attn"], rng)
        call = call.with_tensors(**tensors)
    layouts = st.sampled_from(["as it is", *LAYOUTS])
    return call.with_tensors(**{name: LAYOUTS.get(draw(layouts), lambda x: x)(x) for name, x in call.tensors.items()})


@settings(max_examples=300)
@given(call=calls())
def test_any_call(backend, call):
    results = call.on(backend)
    oracle.check(call, results)
    if "attn" in call.tensors and call.tensors["attn"].ndim == 2:
        oracle.check_indices_exactly(results[-2], call.tensors["attn"], call.has_cls)


@settings(max_examples=50)
@given(call=calls(), data=st.data())
def test_any_image_alone(bitwise_backend, call, data):
    """The same bits as in its batch. NaN compare as equal."""
    together = call.on(bitwise_backend)
    B = len(together[-1])
    if B == 0:
        return
    b = data.draw(st.integers(0, B - 1))
    alone = call.with_tensors(**{name: x[[b]] for name, x in call.tensors.items()}).on(bitwise_backend)
    for a, whole in zip(alone, together, strict=True):
        torch.testing.assert_close(a, whole[[b]], rtol=0, atol=0, equal_nan=True)
