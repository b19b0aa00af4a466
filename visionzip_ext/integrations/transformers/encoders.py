"""VisionZip for a vision encoder on its own: for people with their own model code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import register_dataclass
from transformers import PretrainedConfig

from visionzip_ext.integrations.transformers.towers.kinds import BY_HOOKS
from visionzip_ext.integrations.transformers.towers.shapes import by_shape
from visionzip_ext.integrations.transformers.towers.zip_tower import EncodedTiles, ZipTower
from visionzip_ext.tokens.budget import Budget, TileBudget
from visionzip_ext.tokens.decision import ZipDecision
from visionzip_ext.tokens.tiles import Tile
from visionzip_ext.tokens.zip_tiles import zip_tiles

# What a pytree function, such as a transfer of all tensors to a device, is to find in an encoder's result.
register_dataclass(ZipDecision, serialized_type_name="visionzip_ext.ZipDecision")


class ZippedImages(NamedTuple):
    """What an encoder returns; `tokens, decision = encoder(pixel_values)`.

    Attributes:
        tokens: (B, dominant + contextual, C).
        decision: which of the encoder's tokens they were made of; of images of several shapes a list, one an image.
    """

    tokens: Tensor
    decision: ZipDecision | list[ZipDecision]


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
        policy: str = "attention",
        keep_cls: bool = True,
        early_exit: bool = True,
    ) -> None:
        """Wrap an encoder.

        Args:
            encoder: a `CLIPVisionModel`, `SiglipVisionModel`, `Siglip2VisionModel`, `ViTModel`, `Dinov2Model`,
                `Dinov2WithRegistersModel` or `DINOv3ViTModel` of transformers; or a module that holds one as
                `vision_tower` and says by `select_layer` which layer it takes, like `CLIPVisionTower` of the original
                LLaVA repositories.
            dominant: tokens kept as they are, at least 1; CLS, where the encoder has one, is among them.
            contextual: tokens that all others are merged into.
            layer: which hidden state to zip (-1: the last layer's); of several the features are concatenated, and the
                deepest decides. Default: the wrapped tower's `select_layer`, otherwise -2, as in LLaVA.
            merge: "residual" or "mean", see `visionzip_ext.zip`.
            policy: "attention" or "distinct", see `visionzip_ext.zip`.
            keep_cls: False: CLS scores the patches and takes no row: dominant patches are kept. Of encoders with CLS.
            early_exit: leave out the layers after that one.

        Raises:
            TypeError: an encoder of an unknown kind, or of float64; a budget that is not an int.
            ValueError: a budget that the encoder's tokens cannot fill, a layer out of range, an unknown `merge` or
                `policy`, `keep_cls=False` of an encoder without CLS; a tower that has not loaded its vision model; an
                encoder that is compressed or wrapped at this layer.
        """
        super().__init__()
        self._budget = Budget(dominant, contextual, merge, policy=policy, keep_cls=keep_cls)
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
            pixel_values: (B, channels, height, width). For a `Siglip2VisionModel` (B, patches, channels of a patch), as
                its processor makes them, with `pixel_attention_mask` and `spatial_shapes`; padding is left out.
            kwargs: passed on to the encoder.

        Raises:
            TypeError: `pixel_values` is not a tensor; patches without their `spatial_shapes`.
            ValueError: `pixel_values` of another shape; images of fewer patches than the budget.
            RuntimeError: after `detach`; or the encoder or its attention was replaced after it was wrapped.
        """
        return self.zip_through(self.encoder, pixel_values, **kwargs)

    def zip_through(self, encoder: nn.Module, pixel_values: Tensor, **kwargs: Any) -> ZippedImages:
        """`forward` by the module that stands in the encoder's place: see `ZipTower`."""
        if not self._attached:
            raise RuntimeError("this VisionZipEncoder was detached from its encoder; make a new one")
        check_pixels(self._tower, pixel_values, kwargs)
        encoded = self._tower(pixel_values, through=encoder, **kwargs)
        if not self._tower.takes_patches:
            return ZippedImages(*self._zip(encoded))
        zipped = [self._zip(images) for images in by_shape(encoded, kwargs["spatial_shapes"])]
        if len(zipped) == 1:
            return ZippedImages(*zipped[0])
        return ZippedImages(torch.cat([tokens for tokens, _ in zipped]), [decision for _, decision in zipped])

    def _zip(self, images: EncodedTiles) -> tuple[Tensor, ZipDecision]:
        number, available = images.features.shape[:2]
        check_fits(self._budget, available, self._tower)
        budget = TileBudget(self._budget.dominant, self._budget.contextual)
        zipped = zip_tiles(images, [Tile(budget)] * number, self._budget.rule)
        return zipped.rows.unflatten(0, (number, budget.tokens)), zipped.decisions[0]

    def detach(self) -> nn.Module:
        """Leave the encoder as it was before, and return it."""
        if self._attached:
            self._tower.detach()
        self._attached = False
        return self.encoder


def check_pixels(tower: ZipTower, pixel_values: Any, kwargs: dict[str, Any]) -> None:
    """Raise TypeError or ValueError unless a tower takes these pixel values, and with them what it needs."""
    channels = tower.tower.config.num_channels
    expected = "(B, patches, channels of a patch)" if tower.takes_patches else f"(B, {channels}, height, width)"
    dims = 3 if tower.takes_patches else 4
    if not isinstance(pixel_values, Tensor):
        kind = f"{type(pixel_values).__module__}.{type(pixel_values).__qualname__}"
        raise TypeError(f"pixel_values is a {kind}; expected a torch.Tensor {expected}")
    if pixel_values.dim() != dims or (dims == 4 and pixel_values.shape[1] != channels):
        batch_of_one = "; of a single image pass pixel_values[None]" if pixel_values.dim() == dims - 1 else ""
        raise ValueError(f"pixel_values has shape {tuple(pixel_values.shape)}; expected {expected}{batch_of_one}")
    if not tower.takes_patches:
        return
    for name in ("pixel_attention_mask", "spatial_shapes"):
        if kwargs.get(name) is None:
            raise TypeError(
                f"{tower.name} takes images as patches, and {name} with them; pass all that its processor makes: "
                'encoder(**processor(images=images, return_tensors="pt"))'
            )


def zip_tower_of(
    encoder: nn.Module, budget: Budget, layer: int | Sequence[int] | None, *, early_exit: bool
) -> ZipTower:
    """The tower of an encoder, as in `VisionZipEncoder`, after all was checked; nothing is changed yet."""
    if layer is None:
        layer = getattr(encoder, "select_layer", -2)
    tower = ZipTower(vision_model_of(encoder), layer, early_exit=early_exit)
    if not budget.keep_cls and not tower.has_cls:
        raise ValueError(f"keep_cls=False is for encoders with CLS, which {tower.name} has not; leave keep_cls out")
    if not tower.takes_patches:
        check_fits(budget, tower.encoder_tokens, tower)
    return tower


def check_fits(budget: Budget, tokens: int, tower: ZipTower) -> None:
    """Raise ValueError unless so many tokens of an image, CLS included, are enough for the budget."""
    if tower.has_cls and not budget.keep_cls:
        budget.check_fits(tokens - 1, f"{tower.name} without CLS")
    else:
        budget.check_fits(tokens, tower.name)


def vision_model_of(encoder: nn.Module) -> nn.Module:
    """The vision model of transformers that an encoder is, or holds.

    Raises:
        TypeError: it is none.
        ValueError: it holds one that is not loaded yet.
    """
    model: nn.Module | None = encoder
    if hasattr(encoder, "select_layer"):
        model = getattr(encoder, "vision_tower", None)
        if model is None:
            raise ValueError(f"this {type(encoder).__name__} has not loaded its vision tower; call load_model() first")
    # not PreTrainedModel: a CLIPModel's vision model is none before transformers 5.9
    if not isinstance(model, nn.Module) or not isinstance(getattr(model, "config", None), PretrainedConfig):
        raise TypeError(
            f"encoder is a {type(model).__module__}.{type(model).__qualname__}; expected a CLIPVisionModel, "
            "SiglipVisionModel, Siglip2VisionModel, ViTModel, Dinov2Model, Dinov2WithRegistersModel or DINOv3ViTModel "
            "of transformers, or a module that holds one as `vision_tower` beside a `select_layer`; for any other, "
            f"{BY_HOOKS}"
        )
    return model
