"""VisionZip for a pair of encoders, as in Mini-Gemini."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from visionzip_ext import ops
from visionzip_ext.integrations.transformers.encoders import VisionZipEncoder, zip_tower_of
from visionzip_ext.tokens.budget import Budget
from visionzip_ext.tokens.decision import ZipDecision


class ZippedPairs(NamedTuple):
    """What a dual encoder returns, n = dominant + contextual.

    Attributes:
        tokens: (B, n, C): the first encoder's.
        windows: (B, n, cells of a window, C2): the second encoder's features of the same places.
        decision: which of the first encoder's tokens they were made of.
    """

    tokens: Tensor
    windows: Tensor
    decision: ZipDecision


class VisionZipDualEncoder(nn.Module):
    """Two encoders, as in Mini-Gemini: a low-resolution one whose tokens look into windows of a high-resolution one.

    The decision is made on the low-resolution tokens and applied to the windows, one window for each token: kept
    tokens keep theirs, merged tokens' windows are merged likewise. CLS scores, but has no window and is not returned.
    """

    def __init__(
        self,
        encoder: nn.Module,
        high_resolution: nn.Module,
        dominant: int = 54,
        contextual: int = 10,
        *,
        layer: int | Sequence[int] | None = None,
        merge: str = "residual",
        policy: str = "attention",
        early_exit: bool = True,
    ) -> None:
        """Wrap a pair of encoders.

        Args:
            encoder: the low-resolution encoder, as in `VisionZipEncoder`.
            high_resolution: any module that makes (B, C2, rows, columns) of its pixel values, for instance a ConvNeXt's
                last feature map scaled up to a multiple of the low-resolution patch grid.
            dominant: patches kept as they are, at least 1; CLS is not counted here.
            contextual: tokens that all others are merged into.
            layer: of the low-resolution encoder, as in `VisionZipEncoder`.
            merge: as in `VisionZipEncoder`, for both.
            policy: as in `VisionZipEncoder`.
            early_exit: as in `VisionZipEncoder`.

        Raises:
            TypeError, ValueError: as `VisionZipEncoder`.
        """
        super().__init__()
        patches_only = Budget(dominant, contextual, merge)
        tower = zip_tower_of(encoder, patches_only, layer, early_exit=early_exit)
        patches_only.check_fits(tower.patches**2, f"{tower.name} without CLS")
        self.low_resolution = VisionZipEncoder(
            encoder,
            patches_only.dominant + tower.has_cls,
            contextual,
            layer=layer,
            merge=merge,
            policy=policy,
            early_exit=early_exit,
        )
        self.high_resolution = high_resolution
        self._merge = merge

    def forward(self, pixel_values: Tensor, high_resolution_pixel_values: Tensor) -> ZippedPairs:
        """Encode both and zip both.

        Args:
            pixel_values: (B, 3, height, width), for the low-resolution encoder.
            high_resolution_pixel_values: for the other; the same B images.

        Raises:
            ValueError: a feature map that does not cut into one window for each low-resolution patch.
        """
        zipped = self.low_resolution(pixel_values)
        decision = zipped.decision
        windows = cut_windows(self.high_resolution(high_resolution_pixel_values), decision.grid)
        assignment, dominant = decision.of_patches()
        merged = ops.merge(windows, assignment, dominant, decision.contextual, merge=self._merge)
        return ZippedPairs(zipped.tokens[:, int(decision.has_cls) :], merged, decision)


def cut_windows(feature_map: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, C, rows, columns) -> (B, patches of the grid, cells of a window, C), both in raster order.

    Raises:
        ValueError: rows or columns are no multiples of the grid's.
    """
    if feature_map.dim() != 4 or any(size % cells for size, cells in zip(feature_map.shape[2:], grid, strict=True)):
        raise ValueError(
            f"the high-resolution feature map has shape {tuple(feature_map.shape)}; expected (B, C, rows, columns) "
            f"with rows a multiple of {grid[0]} and columns of {grid[1]}, the low-resolution encoder's patches"
        )
    windows = feature_map.unflatten(3, (grid[1], -1)).unflatten(2, (grid[0], -1))  # (B, C, gy, y, gx, x)
    return windows.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)
