"""compress and restore on a tiny random model of every family, through processor, forward and generate, offline.

test_llava.py looks closer at the mechanism that all families share.
"""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
import transformers
from support import tiny_families
from support.tiny_families import FAMILIES, FRAMES, VIDEO_TOKEN, Family, videos
from support.tiny_models import IMAGE_TOKEN, PATCHES, TRANSFORMERS
from transformers import AutoConfig

from visionzip_ext import VisionZipEncoder, compress, compress_as_configured, last_zip, restore

K, M = 5, 2
TOKENS = K + M
NEW = 5
QUESTION = "USER : <image> what is this ASSISTANT :"

families = pytest.mark.parametrize("family", FAMILIES, ids=str)
tiled = pytest.mark.parametrize("family", [f for f in FAMILIES if f.tiled], ids=str)
with_video = pytest.mark.parametrize("family", [f for f in FAMILIES if f.video], ids=str)

repeats_pixels_wrongly = pytest.mark.skipif(
    TRANSFORMERS < (5, 20), reason="transformers <= 5.17 repeats pixels wrongly for several beams"
)


def compressed(family: Family, **options):
    """A compressed model and its processor."""
    model, processor = family.model(), family.processor()
    compress(model, processor, **({"dominant": K, "contextual": M} | options))
    return model, processor


def tokens_of(inputs, token: int = IMAGE_TOKEN) -> list[int]:
    return (torch.as_tensor(inputs["input_ids"]) == token).sum(1).tolist()


def tiles(family: Family, number: int) -> int:
    """Of the number-th of `Family.images`."""
    return (3, 3, 5, 3)[number % 4] if family.tiled else 1


def answer(model, inputs, **options) -> torch.Tensor:
    generated = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, pad_token_id=0, **options)
    return generated[:, -NEW:]


def flat(features) -> torch.Tensor:
    """Features of any version's form as (tokens, channels)."""
    features = getattr(features, "pooler_output", features)
    if isinstance(features, tuple) and not isinstance(features[-1], torch.Tensor):  # with a number of frames
        features = features[0]
    if isinstance(features, torch.Tensor):
        features = [features]
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in features])


def image_features(model, inputs) -> torch.Tensor:
    names = [n for n in ("pixel_values", "pixel_values_images", "image_sizes", "batch_num_images") if n in inputs]
    with torch.no_grad():
        return flat(model.model.get_image_features(**{name: inputs[name] for name in names}))


def as_embeddings(model, inputs) -> dict[str, torch.Tensor]:
    """The inputs as `inputs_embeds`: the image features written over the placeholders."""
    ids = inputs["input_ids"]
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(ids)
    places = (ids == IMAGE_TOKEN).unsqueeze(-1)
    return {
        "inputs_embeds": embeddings.masked_scatter(places, image_features(model, inputs)),
        "attention_mask": inputs["attention_mask"],
    }


@families
class TestPromise:
    """As many tokens as promised, on both sides."""

    def test_one_image(self, family):
        model, processor = compressed(family)
        seen = []
        model.model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
        )
        inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
        promised = TOKENS * tiles(family, 0)
        assert tokens_of(inputs) == [promised]
        assert answer(model, inputs).shape == (1, NEW)
        others = len(QUESTION.split()) - 1
        assert seen == [promised + others] + [1] * (NEW - 1)

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_images_of_different_sizes_in_one_batch(self, family, side):
        model, processor = compressed(family)
        processor.tokenizer.padding_side = side
        text = [QUESTION, "USER : <image> a cat", QUESTION]
        inputs = processor(images=family.images(3), text=text, return_tensors="pt", padding=True)
        assert tokens_of(inputs) == [TOKENS * tiles(family, i) for i in range(3)]
        with torch.no_grad():
            together = model(**inputs).logits
        for row, image in enumerate(family.images(3)):
            alone = processor(images=[image], text=text[row], return_tensors="pt")
            with torch.no_grad():
                expected = model(**alone).logits[0]
            real = inputs["attention_mask"][row].bool()
            torch.testing.assert_close(together[row][real], expected, rtol=1e-3, atol=1e-3)

    def test_two_images_in_a_prompt_and_a_prompt_without(self, family):
        model, processor = compressed(family)
        text = ["USER : <image> what <image> is this", "USER : a dog"]
        batched = family.images(2)
        if TRANSFORMERS < (5, 0) and family.name == "LlavaOnevision":
            batched = [batched]  # by prompt
        inputs = processor(images=batched, text=text, return_tensors="pt", padding=True)
        several = 2 * TOKENS if family.name == "LlavaOnevision" else TOKENS * (tiles(family, 0) + tiles(family, 1))
        if family.name == "LlavaOnevision" and "batch_num_images" in inputs and len(inputs["batch_num_images"]) == 2:
            several = TOKENS * (tiles(family, 0) + tiles(family, 1))
        assert tokens_of(inputs) == [several, 0]
        with torch.no_grad():
            assert torch.isfinite(model(**inputs).logits).all()

    def test_text_alone(self, family):
        model, processor = compressed(family)
        inputs = processor(text=["USER : what is this"], return_tensors="pt")
        untouched = family.model()
        with torch.no_grad():
            assert torch.equal(model(**inputs).logits, untouched(**inputs).logits)

    def test_chat_template(self, family):
        if TRANSFORMERS < (5, 0) and family.name == "VideoLlava":
            pytest.skip("transformers 4: the stock Video-LLaVA processor takes no chat template's arguments")
        model, processor = compressed(family)
        content = [{"type": "image", "image": family.images(1)[0]}, {"type": "text", "text": "what is this"}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        assert tokens_of(inputs) == [TOKENS * tiles(family, 0)]
        assert answer(model, inputs).shape == (1, NEW)

    def test_pipeline(self, family):
        model, processor = compressed(family)
        pipe = transformers.pipeline(
            "image-text-to-text", model=model, processor=processor, tokenizer=processor.tokenizer, device="cpu"
        )
        result = pipe(images=family.images(1)[0], text=QUESTION, max_new_tokens=NEW, return_full_text=False)
        assert result[0]["generated_text"]

    def test_a_budget_for_the_whole_image(self, family):
        model, processor = compressed(family, dominant=12, contextual=5, budget_per="image")
        text = [QUESTION] * 3
        inputs = processor(images=family.images(3), text=text, return_tensors="pt", padding=True)
        assert tokens_of(inputs) == [17] * 3
        with torch.no_grad():
            model(**inputs)
        if family.tiled:
            assert [(d.dominant, d.contextual) for d in last_zip(model)[:3]] == [(4, 1), (4, 2), (4, 2)]


@families
class TestOracles:
    def test_logits_equal_the_unmodified_model_fed_the_same_embeddings(self, family):
        model, processor = compressed(family)
        text = [QUESTION, "USER : <image> a cat"]
        inputs = processor(images=family.images(2), text=text, return_tensors="pt", padding=True)
        untouched = family.model()
        with torch.no_grad():
            expected = untouched(**as_embeddings(model, inputs)).logits
            assert torch.equal(model(**inputs).logits, expected)
            other = processor(images=family.images(2, seed=1), text=text, return_tensors="pt", padding=True)
            assert not torch.allclose(model(**other).logits, expected, atol=0.1), "the image makes no difference"

    @pytest.mark.parametrize("early_exit", [True, False])
    def test_everything_kept_is_what_the_unmodified_model_sees(self, family, early_exit):
        """In the model's own order, CLS aside, which it does not see."""
        model, processor = family.model(), family.processor()
        inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
        stock = image_features(model, inputs)
        options = {"dominant": PATCHES + family.has_cls, "contextual": 0, "early_exit": early_exit}
        if family.tiled:
            options["layout"] = "native"
        compress(model, processor, **options)
        inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
        ours = image_features(model, inputs)
        assert len(ours) == sum(tokens_of(inputs)) == len(stock) + family.has_cls * tiles(family, 0)
        cls = [0, *range(PATCHES + 1, PATCHES + tiles(family, 0))] if family.has_cls else []
        others = [row for row in range(len(ours)) if row not in cls]
        torch.testing.assert_close(ours[others], stock, rtol=1e-4, atol=1e-4)

    def test_cache_and_no_cache_agree(self, family):
        model, processor = compressed(family)
        text = [QUESTION, "USER : <image> a cat"]
        inputs = processor(images=family.images(2), text=text, return_tensors="pt", padding=True)
        assert torch.equal(answer(model, inputs), answer(model, inputs, use_cache=False))
        untouched = family.model()
        assert torch.equal(answer(model, inputs), answer(untouched, as_embeddings(model, inputs)))

    @repeats_pixels_wrongly
    def test_beam_search(self, family):
        model, processor = compressed(family)
        inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
        untouched = family.model()
        expected = answer(untouched, as_embeddings(model, inputs), num_beams=3)
        assert torch.equal(answer(model, inputs, num_beams=3), expected)

    def test_second_turn_with_the_cache_kept(self, family):
        """The encoder is not run again."""
        model, processor = compressed(family)
        inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
        options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
        first = model.generate(**inputs, **options, return_dict_in_generate=True)
        turn = processor.tokenizer("USER : what is the dog", return_tensors="pt", add_special_tokens=False)["input_ids"]
        ids = torch.cat([first.sequences, turn], 1)
        mask = torch.ones_like(ids)
        decision = last_zip(model)
        kept = model.generate(input_ids=ids, attention_mask=mask, past_key_values=first.past_key_values, **options)
        assert last_zip(model) is decision
        again = model.generate(**(dict(inputs) | {"input_ids": ids, "attention_mask": mask}), **options)
        assert torch.equal(kept, again)


@with_video
class TestVideo:
    TEXT = "USER : <video> what is this"

    def promised(self, family, frames: int = FRAMES) -> int:
        return frames * TOKENS + family.newlines

    def test_frames_have_the_budget(self, family):
        model, processor = compressed(family)
        inputs = processor(videos=videos(1), text=[self.TEXT], return_tensors="pt")
        assert tokens_of(inputs, VIDEO_TOKEN) == [self.promised(family)]
        assert answer(model, inputs).shape == (1, NEW)
        assert last_zip(model).assignment.shape == (FRAMES, PATCHES + family.has_cls)

    def test_the_papers_136_tokens(self, family):
        """8 frames of 17 (table 3)."""
        model, processor = compressed(family, dominant=14, contextual=2 + family.has_cls)
        inputs = processor(videos=videos(1, frames=8), text=[self.TEXT], return_tensors="pt")
        assert tokens_of(inputs, VIDEO_TOKEN) == [8 * (16 + family.has_cls) + family.newlines]
        with torch.no_grad():
            model(**inputs)

    @pytest.mark.parametrize("padding", [True, "max_length"])
    def test_two_videos_and_padding(self, family, padding):
        model, processor = compressed(family)
        text = ["USER : <video> what", "USER : <video> what is this a cat"]
        length = {"max_length": 150} if padding == "max_length" else {}
        inputs = processor(videos=videos(2), text=text, return_tensors="pt", padding=padding, **length)
        assert tokens_of(inputs, VIDEO_TOKEN) == [self.promised(family)] * 2
        assert inputs["input_ids"].shape == inputs["attention_mask"].shape
        if length:
            assert inputs["input_ids"].shape[1] == 150
        assert inputs["attention_mask"].sum(1).tolist() == [self.promised(family) + n for n in (3, 7)]
        with torch.no_grad():
            together = model(**inputs).logits
            alone = model(**processor(videos=videos(2)[:1], text=text[:1], return_tensors="pt")).logits
        real = inputs["attention_mask"][0].bool()
        torch.testing.assert_close(together[0][real], alone[0], rtol=1e-3, atol=1e-3)

    def test_image_and_video_in_one_prompt(self, family):
        model, processor = compressed(family)
        text = ["USER : <image> what <video> is this"]
        inputs = processor(images=family.images(1), videos=videos(1), text=text, return_tensors="pt")
        assert tokens_of(inputs) == [TOKENS * tiles(family, 0)]
        assert tokens_of(inputs, VIDEO_TOKEN) == [self.promised(family)]
        with torch.no_grad():
            assert torch.isfinite(model(**inputs).logits).all()

    def test_a_budget_for_the_whole_video(self, family):
        model, processor = compressed(family, dominant=13, contextual=4, budget_per="image")
        inputs = processor(videos=videos(1), text=[self.TEXT], return_tensors="pt")
        assert tokens_of(inputs, VIDEO_TOKEN) == [17 + family.newlines]
        assert answer(model, inputs).shape == (1, NEW)

    def test_everything_kept_is_what_the_tower_says(self, family):
        model, processor = compressed(family, dominant=PATCHES + family.has_cls, contextual=0)
        pixels = processor(videos=videos(1), text=[self.TEXT], return_tensors="pt")["pixel_values_videos"]
        with torch.no_grad():
            ours = flat(model.model.get_video_features(pixels))
            tower = getattr(family.model().model, family.towers[-1])
            states = tower(pixels[0], output_hidden_states=True).hidden_states[model.config.vision_feature_layer]
            expected = model.model.multi_modal_projector(states).flatten(0, 1)
        torch.testing.assert_close(ours[: len(expected)], expected, rtol=1e-4, atol=1e-4)

    def test_restore(self, family):
        model, processor = compressed(family)
        restore(model, processor)
        inputs = processor(videos=videos(1), text=[self.TEXT], return_tensors="pt")
        expected = family.processor()(videos=videos(1), text=[self.TEXT], return_tensors="pt")
        assert torch.equal(inputs["input_ids"], expected["input_ids"])
        with torch.no_grad():
            assert torch.equal(model(**inputs).logits, family.model()(**expected).logits)


@tiled
class TestTiles:
    def test_640_of_2880(self, family):
        """108 + 20 of each of five tiles, in the sizes of LLaVA-NeXT, by counting alone."""
        config = family.config()
        pinpoints = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
        config.vision_config.image_size, config.image_grid_pinpoints = 336, pinpoints
        model = type(family.model())(config)
        processor = family.processor()
        processor.image_processor.image_grid_pinpoints = pinpoints
        size = {"height": 336, "width": 336}
        processor.image_processor.size = {"shortest_edge": 336} if family.has_cls else size
        processor.image_processor.crop_size = size
        processor.num_image_tokens = 24 * 24
        compress(model, processor, dominant=108, contextual=20)
        image = np.random.default_rng(0).integers(0, 255, (700, 700, 3), dtype=np.uint8)
        assert tokens_of(processor(images=[image], text=[QUESTION], return_tensors="pt")) == [640]

    @pytest.mark.parametrize("number", [0, 1, 2])
    def test_released_order(self, family, number):
        """The base tile's; the other tiles' kept ones in raster order; all CLS; all merged; no newline."""
        model, processor = compressed(family)
        image = family.images(3)[number]
        inputs = processor(images=[image], text=[QUESTION], return_tensors="pt")
        ours = image_features(model, inputs)
        decision = last_zip(model)
        rows = _rows_of_tiles(model, inputs, decision)
        rows_of_grid, columns = {0: (1, 2), 1: (2, 1), 2: (2, 2)}[number]
        kept, cls, merged = [], [], []
        for tile in range(rows_of_grid * columns):
            row, column = divmod(tile, columns)
            for i, token in enumerate(decision.indices[tile + 1].tolist()):
                if family.has_cls and token == 0:
                    cls.append(rows[tile + 1][i])
                    continue
                y, x = divmod(token - family.has_cls, 4)
                kept.append((row * 4 + y, column * 4 + x, rows[tile + 1][i]))
            merged += list(rows[tile + 1][K:])
        in_raster = [row for _, _, row in sorted(kept, key=lambda place: place[:2])]
        expected = torch.stack([*rows[0], *in_raster, *cls, *merged])
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)

    def test_native_layout_counts_and_generates(self, family):
        model, processor = compressed(family, layout="native")
        inputs = processor(images=family.images(3), text=[QUESTION] * 3, return_tensors="pt", padding=True)
        assert sum(tokens_of(inputs)) == len(image_features(model, inputs))
        assert answer(model, inputs).shape == (3, NEW)
        assert torch.equal(answer(model, inputs), answer(model, inputs, use_cache=False))

    def test_native_layout_never_shows_padding(self, family):
        model, processor = compressed(family, layout="native")
        processor_inputs = processor(images=[family.images(1)[0]], text=[QUESTION], return_tensors="pt")
        image_features(model, processor_inputs)
        dropped = [(d.assignment[0] == -1).sum().item() for d in last_zip(model)]
        assert dropped[0] == 0, "the base tile has no padding"
        assert sum(dropped) > 0, "the picture is of another shape than its grid"

    def test_pixels_and_sizes_that_do_not_match(self, family):
        model, processor = compressed(family)
        inputs = processor(images=family.images(2), text=[QUESTION] * 2, return_tensors="pt", padding=True)
        with pytest.raises(ValueError, match="image_sizes are of 1 images"):
            model.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"][:1])
        with pytest.raises(ValueError, match=r"pixel_values has \d+ tiles, but image_sizes ask for"):
            model.model.get_image_features(inputs["pixel_values"].flatten(0, 1)[:4], inputs["image_sizes"])

    def test_processor_with_other_grids(self, family):
        processor = family.processor()
        processor.image_processor.image_grid_pinpoints = [[56, 56]]
        with pytest.raises(ValueError, match=r"image_grid_pinpoints=\[\(56, 56\)\], the model expects"):
            compress(family.model(), processor, dominant=K, contextual=M)

    def test_image_budget_below_the_number_of_tiles(self, family):
        with pytest.raises(ValueError, match='dominant=4 with budget_per="image" is less than one token for each of 5'):
            compress(family.model(), dominant=4, contextual=M, budget_per="image")


def _rows_of_tiles(model, inputs, decision) -> torch.Tensor:
    """(tiles, k + m, channels): each tile's projected rows, from the decision by `merge`."""
    from visionzip_ext import merge

    count = len(decision.indices)
    with torch.no_grad():
        unchanged = copy.deepcopy(model)
        restore(unchanged)
        states = unchanged.model.vision_tower(inputs["pixel_values"][0, :count], output_hidden_states=True)
        hidden = states.hidden_states[model.config.vision_feature_layer]
        rows = merge(hidden, decision.assignment, K, M)
        return model.model.multi_modal_projector(rows)


@families
class TestInstances:
    def test_restore_leaves_everything_as_it_was(self, family):
        model, processor = family.model(), family.processor()
        attributes = [(m, dict(m.__dict__)) for m in model.modules()]
        kind, state = type(processor), dict(processor.__dict__)
        settings = model.config.to_dict()
        compress(model, processor, dominant=K, contextual=M)
        inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
        answer(model, inputs)
        restore(model, processor)
        assert model.config.to_dict() == settings
        assert type(processor) is kind
        assert processor.__dict__.keys() == state.keys()
        for module, before in attributes:
            assert module.__dict__.keys() - _BY_TRANSFORMERS == before.keys() - _BY_TRANSFORMERS
            assert all(module.__dict__[name] is before[name] for name in before if name not in _HOOK_TABLES)
        inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
        with torch.no_grad():
            assert torch.equal(model(**inputs).logits, family.model()(**inputs).logits)

    def test_two_models_with_different_budgets(self, family):
        one, first = compressed(family)
        other, second = compressed(family, dominant=9, contextual=3)
        untouched, third = family.model(), family.processor()
        for model, processor, tokens in ((one, first, 7), (other, second, 12), (one, first, 7)):
            inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
            assert tokens_of(inputs) == [tokens * tiles(family, 0)]
            with torch.no_grad():
                model(**inputs)
        inputs = third(images=family.images(1), text=QUESTION, return_tensors="pt")
        with torch.no_grad():
            untouched(**inputs)

    def test_compress_again_changes_the_budget(self, family):
        model, processor = family.model(), family.processor()
        kind = type(processor)
        compress(model, processor, dominant=K, contextual=M)
        compress(model, processor, dominant=9, contextual=3)
        inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
        assert tokens_of(inputs) == [12 * tiles(family, 0)]
        with torch.no_grad():
            model(**inputs)
        restore(model, processor)
        assert type(processor) is kind

    def test_deep_copies_are_independent(self, family):
        model, processor = compressed(family)
        twin, its_processor = copy.deepcopy(model), copy.deepcopy(processor)
        restore(model, processor)
        inputs = its_processor(images=family.images(1), text=QUESTION, return_tensors="pt")
        assert tokens_of(inputs) == [TOKENS * tiles(family, 0)]
        with torch.no_grad():
            twin(**inputs)
        restore(twin, its_processor)

    @pytest.mark.parametrize("early_exit", [True, False])
    def test_a_copy_between_forwards_with_gradients(self, family, early_exit):
        """Nothing of a forward stays on the model: what has a graph cannot be copied, and holds its memory."""
        model, processor = compressed(family, early_exit=early_exit)
        inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
        expected = model(**inputs).logits
        with torch.no_grad():
            torch.testing.assert_close(copy.deepcopy(model)(**inputs).logits, expected)

    def test_saved_and_loaded_with_its_setting(self, family, tmp_path):
        options = {"merge": "mean", "budget_per": "image", "dominant": 12, "contextual": 5}
        model, processor = compressed(family, **options)
        model.save_pretrained(tmp_path)
        inputs = processor(images=family.images(2), text=[QUESTION] * 2, return_tensors="pt", padding=True)
        expected = image_features(model, inputs)
        assert AutoConfig.from_pretrained(tmp_path).visionzip["budget_per"] == "image"
        loaded, fresh = type(model).from_pretrained(tmp_path).eval(), family.processor()
        compress_as_configured(loaded, fresh)
        inputs = fresh(images=family.images(2), text=[QUESTION] * 2, return_tensors="pt", padding=True)
        assert tokens_of(inputs) == [17, 17]
        torch.testing.assert_close(image_features(loaded, inputs), expected)

    def test_attention_implementation_chosen_later(self, family):
        """Before or after compress, the decision is the same; nothing is silently wrong."""
        model, processor = compressed(family)
        inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
        expected = image_features(model, inputs)
        model.set_attn_implementation("eager")
        torch.testing.assert_close(image_features(model, inputs), expected, rtol=1e-3, atol=1e-3)

    def test_attention_replaced_behind_our_back(self, family):
        model, processor = compressed(family)
        inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
        tower = getattr(model.model, family.towers[0])
        for module in tower.modules():
            if hasattr(module, "_visionzip_tap"):
                module.config = tower.config
        with pytest.raises(RuntimeError, match=r"recorded 0 times .*call visionzip_ext.compress"):
            image_features(model, inputs)

    def test_tower_replaced_since(self, family):
        model, processor = compressed(family)
        inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
        before, name = image_features(model, inputs), family.towers[0]
        setattr(model.model, name, getattr(family.model(seed=1).model, name))
        with pytest.raises(
            RuntimeError, match=r"tower, a \w+, was replaced after compress; call visionzip_ext.compress"
        ):
            image_features(model, inputs)
        compress(model, processor, dominant=K, contextual=M)
        after = image_features(model, inputs)
        assert after.shape == before.shape
        assert not torch.equal(after, before)

    def test_a_tower_that_works_for_somebody_else(self, family):
        """The last of the towers; what had been done by then is undone, and an earlier setting stays."""
        model, processor = compressed(family)
        tower = getattr(model.model, family.towers[-1])
        layer = -3 if family.name == "LlavaOnevision" else -1  # another than its own
        other = VisionZipEncoder(tower, 3, 1, layer=layer)
        name = next(name for name in ("vision_feature_layer", "vision_feature_layers") if hasattr(model.config, name))
        model.config.update({name: layer})
        with pytest.raises(ValueError, match="wrapped in another VisionZipEncoder"):
            compress(model, processor, dominant=9, contextual=3)
        other.detach()
        model.config.update({name: getattr(family.config(), name)})
        inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
        assert tokens_of(inputs) == [TOKENS * tiles(family, 0)]
        with torch.no_grad():
            model(**inputs)

    def test_unknown_words(self, family):
        for options, message in (
            ({"budget_per": "frame"}, 'budget_per must be "tile" or "image", got \'frame\''),
            ({"layout": "raster"}, 'layout must be "released" or "native", got \'raster\''),
            ({"merge": "sum"}, 'merge must be "residual" or "mean"'),
        ):
            with pytest.raises(ValueError, match=message):
                compress(family.model(), dominant=K, contextual=M, **options)

    def test_processor_of_another_family(self, family):
        other = tiny_families.FAMILIES[2 if family.name != "LlavaNext" else 0].processor()
        if family.name == "LlavaNextVideo":
            other = tiny_families.FAMILIES[0].processor()
        with pytest.raises(TypeError, match=f"processor must be the model's .*, got {type(other).__name__}"):
            compress(family.model(), other, dominant=K, contextual=M)

    def test_budget_above_the_tokens(self, family):
        with pytest.raises(ValueError, match=r"ask for 100 tokens of an? (image|tile), but \w+ makes 1[67]"):
            compress(family.model(), dominant=90, contextual=10)


# What the library itself sets in a forward: when hidden states are asked for; in 4.57's LLaVA-NeXT-Video.
_BY_TRANSFORMERS = {"_output_capturing_hooks_installed", "vision_feature_layer", "vision_feature_select_strategy"}
_HOOK_TABLES = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")


@families
class TestTraining:
    def loss(self, family, model, processor) -> torch.Tensor:
        inputs = processor(
            images=family.images(2), text=[QUESTION, "USER : <image> a cat"], padding=True, return_tensors="pt"
        )
        return model(**inputs, labels=self.labels(inputs)).loss

    def labels(self, inputs) -> torch.Tensor:
        hidden = (inputs["input_ids"] == IMAGE_TOKEN) | (inputs["attention_mask"] == 0)
        return inputs["input_ids"].masked_fill(hidden, -100)

    def test_labels_stay_aligned(self, family):
        model, processor = compressed(family)
        inputs = processor(images=family.images(2), text=[QUESTION] * 2, padding=True, return_tensors="pt")
        labels = self.labels(inputs)
        with torch.no_grad():
            loss = model(**inputs, labels=labels).loss
            expected = family.model()(**as_embeddings(model, inputs), labels=labels).loss
        torch.testing.assert_close(loss, expected)

    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_gradients_reach_projector_language_model_and_tower(self, family, checkpointing):
        model, processor = compressed(family)
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.loss(family, model, processor).backward()
        for part in ("multi_modal_projector", "language_model", f"{family.towers[0]}."):
            gradients = [p.grad for name, p in model.named_parameters() if part in name and p.grad is not None]
            assert gradients, part
            assert any(gradient.abs().sum() > 0 for gradient in gradients), part


library_processors = pytest.mark.parametrize("family", [f for f in FAMILIES if not f.video], ids=str)


@library_processors
def test_processors_can_be_pickled(family):
    """As data loaders do that start their workers anew."""
    _, processor = compressed(family)
    loaded = pickle.loads(pickle.dumps(processor))
    inputs = loaded(images=family.images(1), text=QUESTION, return_tensors="pt")
    assert tokens_of(inputs) == [TOKENS * tiles(family, 0)]
    restore(family.model(), loaded)
    assert type(loaded) is type(family.processor())


@library_processors
def test_a_saved_processor_needs_nothing_of_ours(family, tmp_path):
    _, processor = compressed(family)
    processor.save_pretrained(tmp_path / "ours")
    family.processor().save_pretrained(tmp_path / "stock")
    for path in (tmp_path / "stock").iterdir():
        ours, stock = (tmp_path / "ours" / path.name).read_text(), path.read_text()
        if "num_additional_image_tokens" not in stock or family.tiled:  # LLaVA-1.5's is our setting
            assert ours == stock
    assert not [path for path in (tmp_path / "ours").iterdir() if "visionzip" in path.read_text()]


@pytest.mark.parametrize("family", [f for f in FAMILIES if not f.tiled], ids=str)
def test_layout_where_there_are_no_tiles(family):
    with pytest.raises(ValueError, match='layout="native" is for models that show images in tiles'):
        compress(family.model(), dominant=K, contextual=M, layout="native")
