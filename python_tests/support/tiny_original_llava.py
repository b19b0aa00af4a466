"""A small model built like those of the original LLaVA repositories: same structure, same names, random weights.

What matters of them: the vision tower is a module of its own that takes images, one batch or a list, and returns a
layer's tokens without CLS; the model projects what the tower returns; a prompt has one IMAGE_TOKEN_INDEX an image,
which is replaced by however many features that image has.
"""

from __future__ import annotations

import pytest
import torch
from support import tiny_encoders
from support import tiny_models as tiny
from support.tiny_models import IMAGE_SIZE, PATCH
from torch import Tensor, nn
from transformers import CLIPVisionModel, LlamaForCausalLM

IMAGE_TOKEN_INDEX = -200

GENERATES = tiny.TRANSFORMERS >= (5,)
generates = pytest.mark.skipif(not GENERATES, reason="this transformers cannot generate with the repository's models")


class ClipTower(nn.Module):
    """The tower: CLIP, the layer that is taken from it, and which of its tokens."""

    def __init__(self, image_size: int = IMAGE_SIZE, *, select_layer: int = -2, delay_load: bool = False) -> None:
        super().__init__()
        self.is_loaded = False
        self.select_layer = select_layer
        self.select_feature = "patch"
        self._config = tiny.vision_config(image_size=image_size)
        if not delay_load:
            self.load_model()

    def load_model(self) -> None:
        self.vision_tower = tiny_encoders.randomized(CLIPVisionModel(self._config)).eval()
        self.vision_tower.requires_grad_(False)
        self.is_loaded = True

    def feature_select(self, outputs) -> Tensor:
        states = outputs.hidden_states[self.select_layer]
        return states[:, 1:] if self.select_feature == "patch" else states

    @torch.no_grad()
    def forward(self, images: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        if type(images) is list:
            return [self._features(image.unsqueeze(0)) for image in images]
        return self._features(images)

    def _features(self, images: Tensor) -> Tensor:
        outputs = self.vision_tower(images.to(self.device, self.dtype), output_hidden_states=True)
        return self.feature_select(outputs).to(images.dtype)

    @property
    def dtype(self) -> torch.dtype:
        return self.vision_tower.dtype

    @property
    def device(self) -> torch.device:
        return self.vision_tower.device

    @property
    def config(self):
        return self.vision_tower.config if self.is_loaded else self._config

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size

    @property
    def num_patches(self) -> int:
        return (self.config.image_size // PATCH) ** 2


class MultiScaleTower(ClipTower):
    """Puts an image's features at two scales together."""

    @property
    def hidden_size(self) -> int:
        return 2 * self.config.hidden_size


class VisionMixin:
    """What the repositories add to a language model."""

    def get_model(self) -> nn.Module:
        return self.model

    def get_vision_tower(self) -> nn.Module | None:
        return getattr(self.model, "vision_tower", None)

    def encode_images(self, images: Tensor) -> Tensor:
        return self.get_model().mm_projector(self.get_vision_tower()(images))

    def image_features(self, images: Tensor | list[Tensor]) -> list[Tensor]:
        """(features, channels) of each image; an image of several tiles has those of all, one after another."""
        if type(images) is not list and images.ndim == 4:
            return list(self.encode_images(images))
        tiles = [image if image.ndim == 4 else image.unsqueeze(0) for image in images]
        of_tiles = self.encode_images(torch.cat(tiles)).split([len(image) for image in tiles])
        if getattr(self.config, "mm_patch_merge_type", "flat") != "flat":
            raise NotImplementedError("places of tiles")
        return [features.flatten(0, 1) for features in of_tiles]

    def prepare_inputs_labels_for_multimodal(self, input_ids: Tensor, images: Tensor | list[Tensor]) -> Tensor:
        """Ids (1, n) with IMAGE_TOKEN_INDEX in them -> embeddings (1, more, channels)."""
        features = iter(self.image_features(images))
        parts, embed = [], self.get_model().embed_tokens
        for token in input_ids[0]:
            parts.append(next(features) if token == IMAGE_TOKEN_INDEX else embed(token[None]))
        assert next(features, None) is None, "more images than IMAGE_TOKEN_INDEX"
        return torch.cat(parts).unsqueeze(0)


class OriginalLlava(LlamaForCausalLM, VisionMixin):
    """The model. Its methods take what the repository's take, and no more: what else `generate` passes is an error."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values=None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        images: Tensor | list[Tensor] | None = None,
        image_sizes: list[list[int]] | None = None,
        return_dict: bool | None = None,
    ):
        if inputs_embeds is None and images is not None:
            inputs_embeds = self.prepare_inputs_labels_for_multimodal(input_ids, images)
            input_ids = None
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
        )

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, images=None, image_sizes=None, **kwargs) -> Tensor:
        embeds = self.prepare_inputs_labels_for_multimodal(inputs, images)
        return super().generate(inputs_embeds=embeds, **kwargs)

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, inputs_embeds=None, **kwargs):
        images, image_sizes = kwargs.pop("images", None), kwargs.pop("image_sizes", None)
        inputs = super().prepare_inputs_for_generation(
            input_ids, past_key_values=past_key_values, inputs_embeds=inputs_embeds, **kwargs
        )
        own = {"images": images, "image_sizes": image_sizes}
        return inputs | {name: value for name, value in own.items() if value is not None}


def original_llava(tower: nn.Module | None = None, seed: int = 0, **config) -> OriginalLlava:
    """A random model whose answer depends on the image."""
    torch.manual_seed(seed)
    model = OriginalLlava(tiny.text_config()).eval()
    model.config.mm_patch_merge_type = "flat"
    model.config.update(config)
    model.generation_config.eos_token_id = None
    model.model.vision_tower = ClipTower() if tower is None else tower
    model.model.mm_projector = nn.Linear(tiny_encoders.CHANNELS, model.config.hidden_size)
    with torch.no_grad():
        model.model.mm_projector.weight.mul_(10)
    return model
