"""VisionZipDualEncoder on two tiny random encoders, against Mini-Gemini's own computation."""

from __future__ import annotations

import pytest
import torch
import transformers
from support.tiny_encoders import (
    CHANNELS,
    copy_of,
    hidden_states,
    layers_of,
    pixels,
)
from support.tiny_models import IMAGE_SIZE, PATCH, PATCHES
from torch import Tensor, nn

from visionzip_ext import VisionZipDualEncoder, VisionZipEncoder

K, M = 6, 2

WINDOW = 3  # cells along a window's side
FINE_CHANNELS = 12


class FineEncoder(nn.Module):
    """A ConvNeXt's last feature map, scaled up so that each low-resolution patch has a window of WINDOW x WINDOW."""

    def __init__(self):
        super().__init__()
        config = transformers.ConvNextConfig(
            num_channels=3, patch_size=4, hidden_sizes=[8, FINE_CHANNELS], depths=[1, 1], num_stages=2
        )
        self.convnext = transformers.ConvNextModel(config)

    def forward(self, pixel_values: Tensor) -> Tensor:
        side = WINDOW * IMAGE_SIZE // PATCH
        feature_map = self.convnext(pixel_values).last_hidden_state
        return nn.functional.interpolate(feature_map, size=(side, side), mode="bilinear")


class PatchInfoMining(nn.Module):
    """Mini-Gemini's: each low-resolution token asks the cells of its own window, and what they answer is added."""

    def __init__(self):
        super().__init__()
        self.query = nn.Sequential(nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, 16))
        self.key = nn.Sequential(nn.LayerNorm(FINE_CHANNELS), nn.Linear(FINE_CHANNELS, 16))
        self.value = nn.Sequential(nn.LayerNorm(FINE_CHANNELS), nn.Linear(FINE_CHANNELS, CHANNELS))
        self.projector = nn.Linear(CHANNELS, 20)

    def forward(self, tokens: Tensor, windows: Tensor) -> Tensor:
        """(B, n, C), (B, n, cells, C2) -> (B, n, 20)."""
        logits = self.query(tokens).unsqueeze(2) @ self.key(windows).transpose(2, 3) / 16**0.5
        return self.projector(tokens + (logits.softmax(-1) @ self.value(windows)).squeeze(2))


def windows_one_by_one(feature_map: Tensor) -> Tensor:
    """(B, patches, cells, C2), cut out with plain loops."""
    side = IMAGE_SIZE // PATCH
    return torch.stack(
        [
            feature_map[:, :, y * WINDOW : (y + 1) * WINDOW, x * WINDOW : (x + 1) * WINDOW].flatten(2).transpose(1, 2)
            for y in range(side)
            for x in range(side)
        ],
        1,
    )


@pytest.mark.parametrize("kind", ["clip", "siglip"])
class TestDualEncoder:
    @pytest.fixture
    def fine(self) -> nn.Module:
        return FineEncoder().eval()

    @torch.no_grad()
    def test_with_all_patches_it_is_mini_gemini(self, encoder, fine, rng):
        mining = PatchInfoMining()
        images, large = pixels(rng), pixels(rng, 2, 128, 128)
        patches = hidden_states(encoder, images)[-2][:, -PATCHES:]
        expected = mining(patches, windows_one_by_one(fine(large)))
        pairs = VisionZipDualEncoder(encoder, fine, PATCHES, 0)(images, large)
        assert torch.equal(pairs.windows, windows_one_by_one(fine(large)))
        torch.testing.assert_close(mining(pairs.tokens, pairs.windows), expected, rtol=0, atol=0)

    @pytest.mark.parametrize("merge", ["residual", "mean"])
    @torch.no_grad()
    def test_windows_follow_their_tokens(self, encoder, kind, fine, rng, merge):
        images, large = pixels(rng), pixels(rng, 2, 128, 128)
        pairs = VisionZipDualEncoder(encoder, fine, K, M, merge=merge)(images, large)
        assert pairs.tokens.shape == (2, K + M, CHANNELS)
        assert pairs.windows.shape == (2, K + M, WINDOW**2, FINE_CHANNELS)
        offset = int(kind != "siglip")
        patches, windows = hidden_states(encoder, images)[-2], windows_one_by_one(fine(large))
        for image in range(2):
            kept = [int(token) for token in pairs.decision.indices[image]][offset:]
            assert len(kept) == K
            joined = [[] for _ in range(M)]
            for token, row in enumerate(pairs.decision.assignment[image].tolist()):
                if row >= K + offset:
                    joined[row - K - offset].append(token)
            rest = sorted(token for tokens in joined for token in tokens)
            targets = rest[:: max(1, len(rest) // M)][:M]

            def merged(features: Tensor, first: int, target: int, tokens: list[int]) -> Tensor:
                others = [features[token - first] for token in tokens if token != target]
                if merge == "mean":
                    return torch.stack([features[target - first], *others]).mean(0)
                return features[target - first] + (torch.stack(others).mean(0) if others else 0)

            for features, first, got in (
                (patches[image], 0, pairs.tokens[image]),
                (windows[image], offset, pairs.windows[image]),
            ):
                rows = [features[token - first] for token in kept]
                rows += [merged(features, first, t, tokens) for t, tokens in zip(targets, joined, strict=True)]
                torch.testing.assert_close(got, torch.stack(rows), rtol=1e-5, atol=1e-5)

    @torch.no_grad()
    def test_the_decision_is_the_first_encoders(self, encoder, kind, fine, rng):
        images = pixels(rng)
        pairs = VisionZipDualEncoder(encoder, fine, K, M)(images, pixels(rng, 2, 128, 128))
        pairs_of_others = VisionZipDualEncoder(copy_of(encoder), fine, K, M)(images, pixels(rng, 2, 128, 128))
        alone = VisionZipEncoder(copy_of(encoder), K + (kind != "siglip"), M)(images)
        assert torch.equal(pairs.decision.assignment, alone.decision.assignment)
        assert torch.equal(pairs.tokens, alone.tokens[:, int(kind != "siglip") :])
        assert torch.equal(pairs_of_others.decision.assignment, alone.decision.assignment)
        assert not torch.equal(pairs.windows, pairs_of_others.windows)

    def test_gradients_reach_both(self, encoder, fine, rng):
        pairs = VisionZipDualEncoder(encoder, fine, K, M)(pixels(rng), pixels(rng, 2, 128, 128))
        PatchInfoMining()(pairs.tokens, pairs.windows).square().sum().backward()
        assert layers_of(encoder)[0].mlp.fc1.weight.grad.abs().sum() > 0
        assert next(fine.parameters()).grad.abs().sum() > 0

    @pytest.mark.parametrize("shape", [(2, 5, 12, 13), (2, 5, 11, 12), (2, 12, 12)])
    def test_a_feature_map_off_the_grid(self, encoder, rng, shape):
        dual = VisionZipDualEncoder(encoder, nn.Identity(), K, M)
        with pytest.raises(ValueError, match=r"feature map has shape \(2, .*rows a multiple of 4 and columns of 4"):
            dual(pixels(rng), torch.zeros(shape))

    def test_other_images_than_the_first_encoders(self, encoder, rng):
        dual = VisionZipDualEncoder(encoder, nn.Identity(), K, M)
        with pytest.raises(RuntimeError, match="assignment"):
            dual(pixels(rng), torch.zeros(3, 5, 12, 12))

    def test_the_budget_is_of_patches(self, encoder):
        VisionZipDualEncoder(copy_of(encoder), nn.Identity(), PATCHES, 0)
        with pytest.raises(ValueError, match=r"dominant=16 and contextual=1 ask for 17 tokens .* makes 16"):
            VisionZipDualEncoder(encoder, nn.Identity(), PATCHES, 1)
        with pytest.raises(ValueError, match="dominant must be at least 1, got 0"):
            VisionZipDualEncoder(encoder, nn.Identity(), 0, M)
        with pytest.raises(TypeError, match=r"dominant must be an int, got 2\.5 of type float"):
            VisionZipDualEncoder(encoder, nn.Identity(), 2.5, M)
