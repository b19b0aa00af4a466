"""How much memory an operator takes: no temporary larger than the head-mean keys, and no (S, S) matrix."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

PEAK = """
import resource, torch, visionzip_ext

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
"""

# Prints by how many bytes the process's peak grows during a call.  What the outputs take is made, and freed, before.
MEASURE = (
    PEAK
    + """
def inputs(B):
    hidden = torch.ones({B}, {S}, {C}, dtype={dtype})
    return hidden[:B], torch.randn(B, {S}, {H}, {D}).to({dtype}).transpose(1, 2)

def call(hidden, keys, rows):
    if "{op}" == "zip":
        return visionzip_ext.zip(hidden, keys, rows, {k}, {m}, has_cls={has_cls})
    return visionzip_ext.zip_qk(hidden, keys, keys, {k}, {m}, scale=0.1, has_cls={has_cls})

big, small = inputs({B}), inputs(1)
rows = torch.rand({B}, {H}, {S}).to({dtype})
call(*small, rows[:1])  # threads, lazily loaded code
before = peak()
results = call(*big, rows)
print(peak() - before)
"""
)

SLACK = 6 << 20  # of the allocator and the threads' stacks


def growth(script: str, **problem) -> int:
    for name, value in problem.items():
        script = script.replace(f"{{{name}}}", str(value))
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


@pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "mean"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("op", ["zip", "zip_qk"])
def test_peak(op, dtype, has_cls):
    """At B = 64 the keys are 150 MB in float32, their head means 9, and the attention matrices 1.4 GB."""
    B, S, C, H, D, k, m = 64 if op == "zip" or has_cls else 16, 577, 64, 16, 64, 54, 10
    measured = growth(MEASURE, B=B, S=S, C=C, H=H, D=D, k=k, m=m, op=op, dtype=f"torch.{dtype}", has_cls=has_cls)
    outputs = B * ((k + m) * C * 4 + 8 * (k + S))
    head_mean_keys = B * S * D * 4
    assert measured <= outputs + head_mean_keys + SLACK


SCORES_OF_ALL_QUERIES = (
    PEAK
    + """
queries, keys = (torch.randn({B}, {S}, {H}, 72).to({dtype}).transpose(1, 2) for _ in range(2))

def call(queries, keys):
    visionzip_ext.select_qk(queries, keys, 54, 10, scale=0.1, has_cls=False)

call(queries[:1], keys[:1])  # threads, lazily loaded code
before = peak()
call(queries, keys)
print(peak() - before)
"""
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scores_of_all_queries_take_under_a_tenth_of_eager_attention(dtype):
    """SigLIP-so400m. Eager attention holds at least the logits of all images, 136 MB in float32."""
    B, H, S = 4, 16, 729
    assert growth(SCORES_OF_ALL_QUERIES, B=B, H=H, S=S, dtype=dtype) < B * H * S * S * dtype.itemsize / 10


PACKED = (
    PEAK
    + """
def call(lengths):
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    hidden, keys = torch.ones(sum(lengths), 64), torch.randn(4 * sum(lengths), 16, 80)
    k, m = visionzip_ext.allocate_budgets(lengths, ratio=0.1)
    before = peak()
    visionzip_ext.zip_packed(hidden, keys, starts, k, m, queries=keys, scale=0.1, group=4)
    return peak() - before

call([4, 4])  # threads, lazily loaded code
print(call([64, 1024, 100, 256]))
"""
)


def test_peak_of_packed_images():
    """The largest image's attention would be 1.07 GB. Keys, packed, and a tile of logits: about 2 MB a thread."""
    assert growth(PACKED) < 16 << 20
