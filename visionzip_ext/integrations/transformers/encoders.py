"""VisionZip for vision encoders on their own: for people with their own model code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

import visionzip_ext
from visionzip_ext.integrations.transformers.towers.zip_tower import ZipTower
from visionzip_ext.tokens.budget import Budget, TileBudget
from visionzip_ext.tokens.decision import ZipDecision
from visionzip_ext.tokens.tiles import Tile
from visionzip_ext.tokens.zip_tiles import zip_tiles


@dataclass(frozen=True)
class ZippedImages:
    """What an encoder returns.

    Attributes:
        tokens: (B, dominant + contextual, C).
        decision: which of the encoder's tokens they were made of.
    """

    tokens: Tensor
    decision: ZipDecision


class VisionZipEncoder(nn.Module):
    """A vision encoder that returns zipped tokens: pixel values in, tokens and the decision out.

    The encoder keeps its attention implementation; no (S, S) attention matrix is made for the selection. Only this
    instance of it changes, and `detach` undoes that.

    Source: VisionZip (arXiv 2412.04467), section 3.

    Attributes:
        encoder: the vision model.
    """

    def __init__(
        self,
        encoder: nn.Module,
        dominant: int = 54,
        contextual: int = 10,
        *,
        layer: int | Sequence[int] | None = None,
        merge: str = "residual",
        early_exit: bool = True,
    ) -> None:
        """Wrap an encoder.

        Args:
            encoder: a `CLIPVisionModel`, `SiglipVisionModel`, `Dinov2Model` or `Dinov2WithRegistersModel` of
                transformers; or a module that holds one as `vision_tower` and says by `select_layer` which layer it
                takes, like `CLIPVisionTower` of the original LLaVA repositories.
            dominant: tokens kept as they are, at least 1; CLS, where the encoder has one, is among them.
            contextual: tokens that all others are merged into.
            layer: which hidden state to zip (-1: the last layer's); of several the features are concatenated, and the
                deepest decides. Default: the wrapped tower's `select_layer`, otherwise -2, as in LLaVA.
            merge: "residual" or "mean", see `visionzip_ext.zip`.
            early_exit: leave out the layers after that one.

        Raises:
            TypeError: an encoder of an unknown kind; a budget that is not an int.
            ValueError: a budget that the encoder's tokens cannot fill, a layer out of range, an unknown `merge`; a
                tower that has not loaded its vision model; an encoder that is compressed or wrapped at this layer.
        """
        super().__init__()
        self._budget = Budget(dominant, contextual, merge)
        self._tower = zip_tower_of(encoder, self._budget, layer, early_exit=early_exit)
        self.encoder = self._tower.tower
        self._attached = True
        self._tower.attach()

    @property
    def has_cls(self) -> bool:
        """Whether the encoder's token 0 is CLS."""
        return self._tower.has_cls

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> ZippedImages:
        """Encode and zip.

        Args:
            pixel_values: (B, 3, height, width).
            kwargs: passed on to the encoder.

        Raises:
            RuntimeError: after `detach`; or the encoder or its attention was replaced after it was wrapped.
        """
        return self.zip_through(self.encoder, pixel_values, **kwargs)

    def zip_through(self, encoder: nn.Module, pixel_values: Tensor, **kwargs: Any) -> ZippedImages:
        """`forward` by the module that stands in the encoder's place: see `ZipTower`."""
        if not self._attached:
            raise RuntimeError("this VisionZipEncoder was detached from its encoder; make a new one")
        encoded = self._tower(pixel_values, through=encoder, **kwargs)
        budget = TileBudget(self._budget.dominant, self._budget.contextual)
        zipped = zip_tiles(encoded, [Tile(budget)] * len(pixel_values), self._budget.merge)
        return ZippedImages(zipped.rows.unflatten(0, (len(pixel_values), budget.tokens)), zipped.decisions[0])

    def detach(self) -> nn.Module:
        """Leave the encoder as it was before, and return it."""
        if self._attached:
            self._tower.detach()
        self._attached = False
        return self.encoder


@dataclass(frozen=True)
class ZippedPairs:
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

    The decision is made on the low-resolution tokens and carried to the windows, one window for each token: kept
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
            early_exit: as in `VisionZipEncoder`.

        Raises:
            TypeError, ValueError: as `VisionZipEncoder`.
        """
        super().__init__()
        patches_only = Budget(dominant, contextual, merge)
        tower = zip_tower_of(encoder, patches_only, layer, early_exit=early_exit)
        patches_only.check_fits(tower.patches**2, f"{tower.name} without CLS")
        options = {"layer": layer, "merge": merge, "early_exit": early_exit}
        self.low_resolution = VisionZipEncoder(encoder, patches_only.dominant + tower.has_cls, contextual, **options)
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
        carried = visionzip_ext.merge(windows, assignment, dominant, decision.contextual, merge=self._merge)
        return ZippedPairs(zipped.tokens[:, int(decision.has_cls) :], carried, decision)


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


def zip_tower_of(
    encoder: nn.Module, budget: Budget, layer: int | Sequence[int] | None, *, early_exit: bool
) -> ZipTower:
    """The tower of an encoder, as in `VisionZipEncoder`, after all was checked; nothing is changed yet."""
    if layer is None:
        layer = getattr(encoder, "select_layer", -2)
    tower = ZipTower(vision_model_of(encoder), layer, early_exit=early_exit)
    budget.check_fits(tower.encoder_tokens, tower.name)
    return tower


def vision_model_of(encoder: nn.Module) -> nn.Module:
    """The vision model of transformers that an encoder is, or holds.

    Raises:
        TypeError: it is none.
        ValueError: it holds one that is not loaded yet.
    """
    model = encoder
    if hasattr(encoder, "select_layer"):
        model = getattr(encoder, "vision_tower", None)
        if model is None:
            raise ValueError(f"this {type(encoder).__name__} has not loaded its vision tower; call load_model() first")
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"encoder is a {type(model).__module__}.{type(model).__qualname__}; expected a CLIPVisionModel, "
            "SiglipVisionModel, Dinov2Model or Dinov2WithRegistersModel of transformers, or a module that holds one as "
            "`vision_tower` beside a `select_layer`"
        )
    return model
