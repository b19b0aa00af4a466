"""Families that make a token of a square of patches, or of each: PaliGemma, Gemma 3, InternVL, Idefics3, SmolVLM."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import transformers
from support import tiny_grouped
from support.compressed_families import QUESTION, TOKENS, K, M, compressed, grouped, image_features, tokens_of
from support.tiny_families import FAMILIES, FRAMES, videos
from support.tiny_models import IMAGE_TOKEN, PATCHES, TRANSFORMERS

from visionzip_ext import VisionZipEncoder, compress, last_zip, restore

BY_NAME = {family.name: family for family in FAMILIES}
PALIGEMMA_2 = dataclasses.replace(BY_NAME["PaliGemma"], config=lambda: tiny_grouped.paligemma_config("Gemma2Config"))
WITH_FRAMES = [BY_NAME[name] for name in ("InternVL", "SmolVLM") if name in BY_NAME]


@pytest.mark.parametrize("family", [*(f for f in FAMILIES if f.grouped), PALIGEMMA_2], ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_equal_the_unmodified_models_with_the_dropped_tokens_masked(family, side):
    """Nothing is merged then: what is kept stays what it was, and the rest is as if it had never been there."""
    model, processor = family.model(), family.processor()
    processor.tokenizer.padding_side = side
    text = [QUESTION, "USER : <image> a cat"]
    full = processor(images=family.images(2), text=text, return_tensors="pt", padding=True)
    compress(model, processor, dominant=K, contextual=0)
    inputs = processor(images=family.images(2), text=text, return_tensors="pt", padding=True)
    ours, real = (
        (inputs | {"position_ids": positions(family, inputs["attention_mask"])}),
        inputs["attention_mask"].bool(),
    )
    with torch.no_grad():
        logits = model(**ours).logits[real]
    full["attention_mask"][full["input_ids"] == IMAGE_TOKEN] = (last_zip(model).assignment >= 0).flatten().long()
    shown = full["attention_mask"].bool()
    with torch.no_grad():
        untouched = family.model()
        masked = untouched(**full, position_ids=positions(family, full["attention_mask"])).logits[shown]
    torch.testing.assert_close(logits, masked, rtol=1e-4, atol=1e-4)


def positions(family, mask: torch.Tensor) -> torch.Tensor:
    """Of tokens that are shown; PaliGemma counts from one."""
    return (mask.cumsum(1) - 1).clamp(min=0) + (family.name == "PaliGemma")


@grouped
def test_everything_but_the_placeholders_stays_as_it_was(family):
    """Row and column tokens, the tokens around an image, token types, padding aside."""
    _, processor = compressed(family)
    ours, stock = (
        p(images=family.images(2)[1:], text=[QUESTION], return_tensors="pt") for p in (processor, family.processor())
    )
    for name in ("input_ids", "attention_mask", "token_type_ids", "labels"):
        if name in stock:
            kept, expected = (x[name][x["input_ids"] != IMAGE_TOKEN] for x in (ours, stock))
            assert torch.equal(kept, expected), name
    if "token_type_ids" in ours:
        assert ours["token_type_ids"].shape == ours["input_ids"].shape


@grouped
def test_other_images_make_no_difference(family):
    model, processor = compressed(family)
    one, *others = family.images(1) + family.images(1, seed=1) + family.images(1, seed=2)
    together = [
        image_features(model, processor(images=[one, other], text=[QUESTION] * 2, return_tensors="pt", padding=True))
        for other in others
    ]
    rows = TOKENS * family.tiles(0)
    assert torch.equal(together[0][:rows], together[1][:rows])
    assert not torch.equal(together[0][rows:], together[1][rows:])


@grouped
def test_a_processor_that_was_saved_while_compressed(family):
    model, processor = family.model(), family.processor()
    name = "image_seq_len" if hasattr(processor, "image_seq_len") else "image_seq_length"
    setattr(processor, name, TOKENS)
    compress(model, processor, dominant=9, contextual=3)
    inputs = processor(images=family.images(1), text=[QUESTION], return_tensors="pt")
    assert tokens_of(inputs) == [12 * family.tiles(0)]
    restore(model, processor)
    inputs = processor(images=family.images(1), text=[QUESTION], return_tensors="pt")
    assert tokens_of(inputs) == [PATCHES * family.tiles(0)]


@grouped
def test_processor_of_another_checkpoint(family):
    processor = family.processor()
    name = "image_seq_len" if hasattr(processor, "image_seq_len") else "image_seq_length"
    setattr(processor, name, 4 * PATCHES)
    with pytest.raises(ValueError, match=rf"processor.{name} is 64, but the model makes 16 tokens of a tile; take"):
        compress(family.model(), processor, dominant=K, contextual=M)
    processor = family.processor()
    size = processor.image_processor.size
    processor.image_processor.size = processor.image_processor.max_image_size = dict.fromkeys(dict(size), 42)
    with pytest.raises(ValueError, match=r"makes (images|tiles) of 42 .* the model's vision tower takes"):
        compress(family.model(), processor, dominant=K, contextual=M)


@grouped
def test_a_tower_that_works_for_somebody_else(family):
    model = family.model()
    VisionZipEncoder(getattr(model.model, family.towers[0]), 3, 1, layer=-1)
    before = dict(model.model.__dict__)
    with pytest.raises(ValueError, match="wrapped in another VisionZipEncoder"):
        compress(model, dominant=K, contextual=M)
    assert model.model.__dict__ == before


@grouped
def test_projector_replaced_since(family):
    model, processor = compressed(family)
    inputs = processor(images=family.images(1), text=[QUESTION], return_tensors="pt")
    name = family.louder.partition(".")[0]
    setattr(model.model, name, getattr(family.model().model, name))
    with pytest.raises(RuntimeError, match=rf"{name}\S* of this \w+ was replaced after compress; call visionzip_ext"):
        image_features(model, inputs)
    compress(model, processor, dominant=K, contextual=M)
    assert len(image_features(model, inputs)) == sum(tokens_of(inputs))


@grouped
def test_a_tower_that_is_run_by_itself_is_not_zipped(family):
    model, processor = compressed(family)
    inputs = processor(images=family.images(1), text=[QUESTION], return_tensors="pt")
    image_features(model, inputs)
    decision = last_zip(model)
    with torch.no_grad():
        getattr(model.model, family.towers[0])(inputs["pixel_values"].flatten(0, -4))
    assert last_zip(model) is decision


@pytest.mark.skipif(TRANSFORMERS < (5, 0), reason="transformers 4's own method breaks the graph; take transformers 5")
def test_compiled_from_pixels_to_features_in_one_graph():
    family = BY_NAME["InternVL"]
    model, processor = compressed(family)
    pixels = processor(images=family.images(1), text=[QUESTION], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model.model.get_image_features(pixels).pooler_output
        graph = torch.compile(model.model.get_image_features, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(graph(pixels).pooler_output, expected)


def test_paligemma_with_an_answer_to_learn():
    """The prompt sees all of itself, the answer only what comes before; the loss is of the answer alone."""
    family = BY_NAME["PaliGemma"]
    model, processor = compressed(family)
    options = {"images": family.images(2), "text": ["<image> what is"] * 2, "return_tensors": "pt", "padding": True}
    inputs = processor(**options, suffix=["a cat", "the dog"])
    assert (inputs["labels"] != -100).sum(1).tolist() == [3, 3]
    assert inputs["token_type_ids"].sum(1).tolist() == [3, 3]
    features = image_features(model, inputs)
    untouched = family.model()
    places = (inputs["input_ids"] == IMAGE_TOKEN).unsqueeze(-1)
    rest = {name: inputs[name] for name in ("attention_mask", "token_type_ids", "labels")}
    with torch.no_grad():
        embeddings = untouched.get_input_embeddings()(inputs["input_ids"]).masked_scatter(places, features)
        expected = untouched(inputs_embeds=embeddings, **rest)
        assert torch.equal(model(**inputs).loss, expected.loss)
        everything_is_answer = untouched(inputs_embeds=embeddings, **(rest | {"token_type_ids": None}))
    assert not torch.allclose(everything_is_answer.logits, expected.logits)


def test_gemma3_with_pan_and_scan():
    """Each crop has the budget, as an image of its own."""
    family = BY_NAME["Gemma3"]
    model, processor = compressed(family)
    crops = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 20, "pan_and_scan_max_num_crops": 4}
    wide = BY_NAME["InternVL"].pictures(1)  # 40 x 150
    inputs = processor(images=[wide], text=[QUESTION], return_tensors="pt", **crops)
    tiles = len(inputs["pixel_values"])
    assert tiles > 2
    assert tokens_of(inputs) == [TOKENS * tiles] == [int(inputs["token_type_ids"].sum())]
    with torch.no_grad():
        assert torch.isfinite(model(**inputs).logits).all()
    assert last_zip(model).assignment.shape == (tiles, PATCHES)


@pytest.mark.parametrize("family", WITH_FRAMES, ids=str)
def test_frames_of_a_video_have_the_budget(family):
    model, processor = compressed(family)
    given = [[video] for video in videos(2)] if family.nested else videos(2)
    inputs = processor(
        videos=given, text=["USER : <video> what", "USER : <video> a cat"], return_tensors="pt", padding=True
    )
    assert tokens_of(inputs) == [FRAMES * TOKENS] * 2
    with torch.no_grad():
        assert torch.isfinite(model(**inputs).logits).all()
    assert last_zip(model).assignment.shape == (2 * FRAMES, PATCHES)


def test_internvl_image_and_video_in_one_prompt():
    family = BY_NAME["InternVL"]
    model, processor = compressed(family)
    text = ["USER : <image> what <video> is this"]
    inputs = processor(images=family.images(1), videos=videos(1), text=text, return_tensors="pt")
    assert tokens_of(inputs) == [TOKENS * (family.tiles(0) + FRAMES)]
    with torch.no_grad():
        assert torch.isfinite(model(**inputs).logits).all()


@pytest.mark.skipif(TRANSFORMERS < (5, 0), reason="transformers 4's own method knows the last layer alone; take 5")
def test_internvl_with_another_layer():
    family = BY_NAME["InternVL"]
    config = family.config()
    config.vision_feature_layer = -2
    family = dataclasses.replace(family, config=lambda: config)
    model, processor = family.model(), family.processor()
    pixels = processor(images=family.images(1), text=[QUESTION], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        stock = model.model.get_image_features(pixels).pooler_output
        compress(model, dominant=PATCHES, contextual=0)
        torch.testing.assert_close(model.model.get_image_features(pixels).pooler_output, stock, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="vision_feature_layer=-1 is not what the model was compressed for"):
        model.model.get_image_features(pixels, vision_feature_layer=-1)
    model.config.vision_feature_layer = [-2, -1]
    with pytest.raises(ValueError, match=r"vision_feature_layer=\[-2, -1\] is not one layer; set model.config"):
        compress(model, dominant=K, contextual=M)


def test_idefics3_tiles_that_are_partly_hidden():
    family = BY_NAME["Idefics3"]
    model, processor = compressed(family)
    inputs = processor(images=family.images(1), text=[QUESTION], return_tensors="pt")
    inputs["pixel_attention_mask"][0, 1, 50:] = 0
    with pytest.raises(ValueError, match="pixel_attention_mask hides a part of a tile; VisionZip expects whole tiles"):
        model(**inputs)


@pytest.mark.skipif(tiny_grouped.HAS_SMOLVLM, reason="here its processor can be imported")
def test_smolvlm_where_its_processor_cannot_be_imported():
    """As docs/models.md says: it needs torchvision there; the model needs nothing."""
    with pytest.raises(ModuleNotFoundError, match="SmolVLMProcessor"):
        transformers.SmolVLMProcessor.from_pretrained("nowhere")
    model = transformers.SmolVLMForConditionalGeneration(tiny_grouped.idefics3_config("SmolVLM")).eval()
    compress(model, dominant=K, contextual=M)
    size = model.config.vision_config.image_size
    with torch.no_grad():
        features = model.model.get_image_features(torch.randn(1, 2, 3, size, size))
    assert getattr(features, "pooler_output", features).shape[:2] == (2, TOKENS)
