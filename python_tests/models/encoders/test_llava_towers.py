"""compress on LLaVA models of transformers with each kind of vision tower that their config can hold."""

from __future__ import annotations

import pytest
import torch
from support import snapshots, tiny_encoders
from support import tiny_models as tiny
from support.tiny_encoders import clear_pixels, copy_of, hidden_states, pixels, tokens_of
from support.tiny_models import IMAGE_TOKEN, PATCHES

from visionzip_ext import compress, last_zip, restore

K, M = 6, 2


@pytest.fixture
def llava(kind):
    model = tiny.llava(tiny.llava_config(vision_config=tiny_encoders.encoder(kind).config))
    tiny_encoders.randomized(model.model.vision_tower)
    return model


@torch.no_grad()
def test_features_are_the_projected_tokens_of_the_definition(llava, rng):
    tower = copy_of(llava.model.vision_tower)
    images, inputs = clear_pixels(rng, tower, -2, K, M)
    tokens, indices, assignment = inputs.zip(K, M)
    compress(llava, dominant=K, contextual=M)
    features = tiny.features(llava, images)
    assert torch.equal(last_zip(llava).indices, indices)
    assert torch.equal(last_zip(llava).assignment, assignment)
    torch.testing.assert_close(features, llava.model.multi_modal_projector(tokens), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_all_tokens_kept_are_the_towers_own(llava, kind, rng):
    images, everything = pixels(rng), tokens_of(kind, PATCHES)
    states = hidden_states(llava.model.vision_tower, images)[-2]
    compress(llava, dominant=everything, contextual=0)
    assert torch.equal(tiny.features(llava, images), llava.model.multi_modal_projector(states))


def test_generate_with_its_processor_and_back(llava, kind):
    registers = getattr(llava.model.vision_tower.config, "num_register_tokens", 0)
    strategy = "full" if kind == "siglip" else "default"
    llava.config.vision_feature_select_strategy = strategy
    processor = tiny.processor(strategy, has_cls=kind != "siglip")
    processor.num_additional_image_tokens += registers

    def generated() -> tuple[int, torch.Tensor]:
        inputs = processor(text="USER : <image> what is this", images=tiny.images(1), return_tensors="pt")
        count = int((inputs["input_ids"] == IMAGE_TOKEN).sum())
        return count, llava.generate(**inputs, max_new_tokens=3, do_sample=False, pad_token_id=0)

    count, plain = generated()
    assert count == PATCHES + registers
    compress(llava, processor, dominant=K, contextual=M)
    assert generated()[0] == K + M
    restore(llava, processor)
    assert generated()[0] == count
    assert torch.equal(generated()[1], plain)


def test_float64_is_refused_before_anything_changes(llava):
    before = snapshots.instances(llava.double())
    with pytest.raises(TypeError, match=r"has parameters of float64; .*call \.float\(\) on the model first"):
        compress(llava, dominant=K, contextual=M)
    assert snapshots.instances(llava) == before
