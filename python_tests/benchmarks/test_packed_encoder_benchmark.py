"""`benchmarks.packed_encoder` at sizes that take no time."""

from __future__ import annotations

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="5.18")

from benchmarks import packed_encoder  # noqa: E402


def test_both_providers_compute_the_same():
    """In another order: ours stands in raster order."""
    pixels, grids = packed_encoder.images([16, 64, 36], 3 * 2 * 14 * 14)
    with torch.no_grad():
        ours, other = (
            provider(packed_encoder.model(True))(pixels, grids) for provider in packed_encoder.PROVIDERS.values()
        )
    assert ours.shape == other.shape
    alike = torch.cdist(ours, other).min(1).values < 1e-3 * other.norm(dim=1).mean()
    assert alike.float().mean() > 0.8


def test_quick(capsys):
    assert packed_encoder.main(["--quick", "--images", "16", "64"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in packed_encoder.PROVIDERS)
