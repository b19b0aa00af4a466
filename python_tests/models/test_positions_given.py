"""positions="kept" of a LLaVA: calls of all kinds, whose positions they are, and what is refused."""

from __future__ import annotations

import copy
import gc
import inspect
import json
import pickle
import weakref

import pytest
import torch
from support import tiny_models as tiny
from support.compressed_families import as_embeddings
from support.positions import K, M, compressed, kept, model_of, positions_seen
from support.tiny_families import FAMILIES
from support.tiny_models import TRANSFORMERS, padded, prompt
from transformers import DynamicCache, LlavaForConditionalGeneration

from visionzip_ext import compress, compress_as_configured, last_zip, mark_tuned, restore

TOKENS, PATCHES, NEW = K + M, 16, 5
LLAVA, LLAVA_NEXT, ONEVISION = (
    next(family for family in FAMILIES if family.name == name) for name in ("Llava", "LlavaNext", "LlavaOnevision")
)
OPTIONS = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}


@pytest.fixture
def llava():
    return compressed(LLAVA, positions="kept")[0]


def batch_of(*rows, images, side="left"):
    return padded(list(rows), side) | {"pixel_values": tiny.pixels(images)}


def one_image() -> dict:
    return batch_of(prompt([1, 5], TOKENS, [7, 8]), images=1)


def logits(model, **inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def likeliest(model, of_tokens: torch.Tensor) -> int:
    """Of the last token, as `generate` takes it."""
    last = of_tokens[0, -1].clone()
    last[model.generation_config.suppress_tokens] = -torch.inf
    return int(last.argmax())


def test_rows_of_images_and_merged_ones_stand_where_the_paper_puts_them(llava):
    """Of the patches not kept every step-th is a target (Algorithm 2); CLS stands with the first patch."""
    seen = positions_seen(llava, LLAVA)
    batch = batch_of(prompt([1, 5], TOKENS, [7], TOKENS, [8]), prompt([1, 9], TOKENS, [10, 11]), images=3)
    logits(llava, **batch)
    places = []
    for indices in last_zip(llava).indices:
        rest = [token for token in range(PATCHES + 1) if token not in indices.tolist()]
        step = len(rest) // M
        places.append([max(token - 1, 0) for token in [*indices.tolist(), *rest[::step][:M]]])
    first, second, third = (torch.tensor(place) for place in places)
    at = 2 + PATCHES
    expected = [0, 1, *(2 + first), at, *(at + 1 + second), at + 1 + PATCHES]
    assert seen[0][0].tolist() == list(map(int, expected))
    pads = len(batch["input_ids"][1]) - (2 + TOKENS + 2)
    expected = [0, 1, *(2 + third), at, at + 1]
    assert (seen[0][1][pads:] - pads).tolist() == list(map(int, expected))  # forward counts padding too, as without us


def test_several_images_and_padding_do_not_change_a_row(llava):
    rows = prompt([1, 5], TOKENS, [7], TOKENS, [8]), prompt([1, 9], TOKENS, [10, 11])
    together = llava.generate(**batch_of(*rows, images=3), **OPTIONS)[:, -NEW:]
    for row, (ids, pixels) in enumerate(zip(rows, (slice(0, 2), slice(2, 3)), strict=True)):
        alone = llava.generate(**padded([ids]), pixel_values=tiny.pixels(3)[pixels], **OPTIONS)[0, -NEW:]
        assert torch.equal(together[row], alone)
    right = logits(llava, **batch_of(*rows, images=3, side="right"))
    for row, (ids, pixels) in enumerate(zip(rows, (slice(0, 2), slice(2, 3)), strict=True)):
        alone = logits(llava, **padded([ids]), pixel_values=tiny.pixels(3)[pixels])[0]
        torch.testing.assert_close(right[row, : len(ids)], alone, rtol=1e-4, atol=1e-4)


def test_a_row_without_an_image_is_as_without_us(llava):
    rows = prompt([1, 5], TOKENS, [7]), [1, 11, 12]
    seen = positions_seen(llava, LLAVA)
    together = llava.generate(**batch_of(*rows, images=1), **OPTIONS)[1, -NEW:]
    assert seen[-1][1].tolist() == [3 + NEW - 2]
    alone = model_of(LLAVA).generate(**padded([rows[1]]), **OPTIONS)[0, -NEW:]
    assert torch.equal(together, alone)


@pytest.mark.parametrize("mask", ["given", "none"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_positions_with_gaps_are_not_taken_for_several_sequences(llava, mask, use_cache):
    """transformers takes them for such where it is given neither a mask nor a cache."""
    batch = one_image()
    if mask == "none":
        del batch["attention_mask"]
    seen = positions_seen(llava, LLAVA)
    got = logits(llava, **batch, use_cache=use_cache)
    expected = logits(model_of(LLAVA), **as_embeddings(llava, one_image()), position_ids=seen[0])
    torch.testing.assert_close(got, expected)


def test_position_ids_of_the_callers_own_stay(llava):
    batch = one_image()
    length = batch["input_ids"].shape[1]
    own = (torch.arange(length) * 3)[None]
    seen = positions_seen(llava, LLAVA)
    for positions in (own, torch.arange(length)[None]):
        logits(llava, **batch, position_ids=positions)
        assert torch.equal(seen[-1], positions)
    llava.model(batch["input_ids"], batch["pixel_values"], batch["attention_mask"], own)
    assert torch.equal(seen[-1], own)


def test_a_language_model_that_is_called_by_itself(llava):
    ids, untouched = torch.tensor([[1, 5, 7]]), model_of(LLAVA).model.language_model
    logits(llava, **one_image())
    with torch.no_grad():
        expected = untouched(ids).last_hidden_state
        assert torch.equal(llava.model.language_model(ids).last_hidden_state, expected)
        embeddings = llava.get_input_embeddings()(ids)
        assert torch.equal(llava.model.language_model(inputs_embeds=embeddings).last_hidden_state, expected)


@pytest.mark.skipif(TRANSFORMERS < (5, 0), reason="transformers 4's generate does not count position_ids on")
def test_position_ids_given_to_generate_stay(llava):
    batch = one_image()
    length = batch["input_ids"].shape[1]
    seen = positions_seen(llava, LLAVA)
    llava.generate(**batch, position_ids=torch.arange(length)[None], **OPTIONS)
    assert torch.equal(torch.cat(seen, 1)[0], torch.arange(length + NEW - 1))


def test_decoding_by_hand(llava):
    """With the cache alone, with positions of one's own, and after some of the cache was cropped."""
    expected = llava.generate(**one_image(), **OPTIONS)[0, -NEW:].tolist()
    seen = positions_seen(llava, LLAVA)
    with torch.no_grad():
        out = llava(**one_image())
        told = [likeliest(llava, out.logits)]
        for _ in range(NEW - 1):
            out = llava(input_ids=torch.tensor([told[-1:]]), past_key_values=out.past_key_values)
            told.append(likeliest(llava, out.logits))
        assert told == expected
        assert [int(x) for x in seen[1:]] == list(range(4 + PATCHES, 4 + PATCHES + NEW - 1))
        llava(
            input_ids=torch.tensor([told[-1:]]), past_key_values=out.past_key_values, position_ids=torch.tensor([[3]])
        )
        assert seen[-1].tolist() == [[3]]


def test_a_cache_that_is_cropped_or_emptied(llava):
    cache = DynamicCache(config=llava.config.get_text_config())
    seen = positions_seen(llava, LLAVA)
    step = {"input_ids": torch.tensor([[5]]), "past_key_values": cache}
    with torch.no_grad():
        for ids in (prompt([1, 5], TOKENS, [7]), prompt(TOKENS, [8])):  # two turns, an image each
            llava(input_ids=torch.tensor([ids]), pixel_values=tiny.pixels(1), past_key_values=cache)
        for left, expected in ((2 + TOKENS + 1, 3 + PATCHES), (2, 2)):
            for layer in cache.layers:
                layer.keys, layer.values = layer.keys[:, :, :left], layer.values[:, :, :left]
            llava(**step)
            assert seen[-1].tolist() == [[expected]]
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, :0], layer.values[:, :, :0]
        llava(**step)
        llava(**step)
    assert [x.numel() for x in seen[-2:]] == [0, 0], "not left to the language model, which counts from 0 again"


@pytest.mark.skipif(TRANSFORMERS < (5, 0), reason="transformers 4 shows a model images in the first turn alone")
def test_a_second_image_in_a_second_turn(llava):
    first = llava.generate(**one_image(), **OPTIONS, return_dict_in_generate=True)
    turn = torch.tensor([prompt([21, 22], TOKENS, [23])])
    ids = torch.cat([first.sequences, turn], 1)
    both = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    anew = llava.generate(**both, pixel_values=tiny.pixels(2), **OPTIONS)
    continued = llava.generate(
        **both, pixel_values=tiny.pixels(2)[1:], past_key_values=copy.deepcopy(first.past_key_values), **OPTIONS
    )
    assert torch.equal(continued, anew)


@pytest.mark.parametrize("options", [{"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 2}], ids=str)
def test_other_ways_to_generate_give_the_same_answer(llava, options):
    batch = batch_of(prompt([1, 5], TOKENS, [7, 8, 7, 8, 7]), images=1) | {"eos_token_id": 3}
    expected = llava.generate(**batch, **OPTIONS)
    for _ in range(2):  # a static cache is used again
        assert torch.equal(llava.generate(**batch, **options, **OPTIONS), expected)


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}], ids=str)
def test_a_compiled_language_model(llava, options):
    expected = llava.generate(**one_image(), **OPTIONS)
    torch._dynamo.reset()
    llava.model.language_model.compile(backend="eager")
    assert torch.equal(llava.generate(**one_image(), **options, **OPTIONS), expected)


def test_training_with_labels(llava):
    """The loss and the gradients are the unmodified model's at these embeddings and positions."""
    batch = batch_of(prompt([1, 5], TOKENS, [7, 8]), prompt([1, 9], TOKENS, [10]), images=2, side="right")
    labels = batch["input_ids"].masked_fill(batch["input_ids"] == tiny.IMAGE_TOKEN, -100)
    seen = positions_seen(llava, LLAVA)
    llava.gradient_checkpointing_enable()
    loss = llava.train()(**batch, labels=labels).loss
    loss.backward()
    untouched = model_of(LLAVA).train()
    expected = untouched(**as_embeddings(llava, batch), position_ids=seen[0], labels=labels).loss
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for name in ("lm_head.weight", "model.language_model.layers.0.self_attn.q_proj.weight"):
        torch.testing.assert_close(llava.get_parameter(name).grad, untouched.get_parameter(name).grad)
    assert llava.model.multi_modal_projector.linear_1.weight.grad.any()


def test_saved_in_the_config_and_applied_again(llava, tmp_path):
    assert llava.config.visionzip["positions"] == "kept"
    expected = llava.generate(**one_image(), **OPTIONS)
    llava.save_pretrained(tmp_path)
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    loaded.generation_config = llava.generation_config
    compress_as_configured(loaded)
    assert torch.equal(loaded.generate(**one_image(), **OPTIONS), expected)
    compress(loaded, dominant=K, contextual=M)
    assert loaded.config.visionzip["positions"] == "renumbered"
    assert "generate" not in loaded.__dict__
    assert json.loads((tmp_path / "config.json").read_text())["visionzip"]["positions"] == "kept"


def test_a_large_grid_counts_as_the_unmodified_model_scales_it_down():
    model, processor, stock = model_of(ONEVISION), ONEVISION.processor(), ONEVISION.processor()
    model.config.vision_aspect_ratio = processor.vision_aspect_ratio = stock.vision_aspect_ratio = "anyres_max_1"
    compress(model, processor, dominant=K, contextual=M, **kept(ONEVISION))
    seen = positions_seen(model, ONEVISION)
    given = {"images": ONEVISION.images(3)[2:], "text": "USER : <image> what", "return_tensors": "pt"}
    inputs, counted = processor(**given), stock(**given)
    logits(model, **inputs)
    shown = torch.arange(counted["input_ids"].shape[1])[counted["input_ids"][0] != tiny.IMAGE_TOKEN]
    assert torch.equal(seen[0][0][inputs["input_ids"][0] != tiny.IMAGE_TOKEN], shown)
    assert counted["input_ids"].shape[1] < 8 * 9, "nothing was scaled down"


def test_tuned_with_the_other_positions():
    model = compressed(LLAVA)[0]
    with pytest.warns(RuntimeWarning, match=r"was tuned with positions='renumbered' .*with positions='kept' now"):
        compress(mark_tuned(model), dominant=K, contextual=M, positions="kept")


def test_pickled_and_freed(llava):
    """A pickle keeps positions by itself; nothing that was put in keeps a model alive."""
    expected = llava.generate(**one_image(), **OPTIONS)
    twin = pickle.loads(pickle.dumps(llava))
    assert torch.equal(twin.generate(**one_image(), **OPTIONS), expected)
    restore(twin)
    assert "generate" not in twin.__dict__
    alive = weakref.ref(twin)
    compress(twin, dominant=K, contextual=M, positions="kept")
    gc.disable()
    try:
        del twin
        assert alive() is None
    finally:
        gc.enable()


def test_generate_looks_as_before(llava):
    """Other code reads its signature."""
    assert inspect.signature(llava.generate) == inspect.signature(model_of(LLAVA).generate)


def test_restore_by_the_inner_model(llava):
    restore(llava.model)
    assert "generate" not in llava.__dict__


def test_features_that_do_not_say_what_they_are_of(llava):
    if "mm_encoder_outputs" not in inspect.signature(llava.forward).parameters:
        pytest.skip("this transformers takes no features that were made before")
    with torch.no_grad():
        features = llava.get_image_features(tiny.pixels(1))
        batch = padded([prompt([1, 5], TOKENS, [7, 8])])
        assert torch.equal(llava(**batch, mm_encoder_outputs={"image": features}).logits, logits(llava, **one_image()))
        restore(llava)
        unknown = compress(llava, dominant=K, contextual=M).get_image_features(tiny.pixels(1))
        compress(llava, dominant=K, contextual=M, positions="kept")
        with pytest.raises(
            RuntimeError, match=r"do not say which tokens they are of.*whole \(prefill_chunk_size=None\)"
        ):
            llava(**batch, mm_encoder_outputs={"image": unknown})


def test_embeddings_in_place_of_a_prompt(llava):
    """Where images are in them, nobody knows."""
    batch = one_image()
    embeddings = llava.get_input_embeddings()(batch.pop("input_ids"))
    with pytest.raises(ValueError, match=r'positions="kept" needs input_ids, .*got inputs_embeds: pass position_ids'):
        llava(inputs_embeds=embeddings, **batch)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (lambda: model_of(LLAVA), {"positions": "all"}, r'positions must be "renumbered" or "kept", got \'all\''),
        (lambda: model_of(LLAVA).model, {"positions": "kept"}, r"pass the model around this LlavaModel, with its lang"),
        (lambda: model_of(LLAVA_NEXT), {"positions": "kept"}, r'layout="released" shows padding.*give layout="native"'),
    ],
)
def test_positions_that_a_model_cannot_have(model, options, message):
    model = model()
    with pytest.raises(ValueError, match=message):
        compress(model, dominant=K, contextual=M, **options)
    assert not hasattr(model.config, "visionzip")


def test_a_language_model_without_position_ids():
    model = model_of(LLAVA)
    model.model.language_model.forward = lambda inputs_embeds, attention_mask: None
    with pytest.raises(ValueError, match="is for language models that take position_ids; LlamaModel does not"):
        compress(model, dominant=K, contextual=M, positions="kept")
