"""compress and restore on tiny random LLaVA models, end to end, offline.

Runs on transformers 4.57 and 5; where a version itself is wrong, the skip says so.
"""

from __future__ import annotations

import copy
import json
import pickle
import threading
import warnings

import numpy as np
import pytest
import torch
from support import snapshots
from support import tiny_models as tiny
from support.tiny_models import IMAGE_TOKEN, LAYERS, PATCHES, TRANSFORMERS, features, padded, prompt
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import (
    AttentionInterface,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    LlavaForConditionalGeneration,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.clip import modeling_clip
from transformers.models.llava import modeling_llava

import visionzip_ext
from visionzip_ext import compress, compress_as_configured, last_zip, reference, restore

K, M = 5, 2
TOKENS = K + M
NEW = 6


@pytest.fixture
def model():
    return tiny.llava()


@pytest.fixture
def processor():
    return tiny.processor()


@pytest.fixture
def compressed(model):
    return compress(model, dominant=K, contextual=M)


def answer(model, **inputs) -> torch.Tensor:
    """The greedily generated tokens alone."""
    generated = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    return generated[:, -NEW:]


def answer_without_cache(model, **inputs) -> torch.Tensor:
    return answer(model, **inputs, use_cache=False)


def as_embeddings(model, batch: dict) -> dict[str, torch.Tensor]:
    """The batch as plain `inputs_embeds`: the image features written over the placeholders."""
    ids = batch["input_ids"]
    embeddings = model.get_input_embeddings()(ids)
    image_features = features(model, batch["pixel_values"]).flatten(0, 1).to(embeddings.dtype)
    embeddings = embeddings.masked_scatter((ids == IMAGE_TOKEN).unsqueeze(-1), image_features)
    return {"inputs_embeds": embeddings, "attention_mask": batch["attention_mask"]}


class Wrapper(torch.nn.Module):
    """As peft's: has a module under a name, and that module's attributes."""

    def __init__(self, name: str, module: torch.nn.Module):
        super().__init__()
        self.wraps = name
        setattr(self, name, module)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__(self.wraps), name)


def as_by_peft(model) -> Wrapper:
    return Wrapper("base_model", Wrapper("model", model))


def vision_layers(model) -> torch.nn.ModuleList:
    tower = model.model.vision_tower
    return getattr(tower, "vision_model", tower).encoder.layers


def lengths_seen_by_language_model(model) -> list[int]:
    """A list that fills with the sequence length of each forward of the language model."""
    seen = []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    return seen


def placeholders(inputs) -> list[int]:
    return (torch.as_tensor(inputs["input_ids"]) == IMAGE_TOKEN).sum(1).tolist()


class TestEndToEnd:
    def test_processor_and_generate_as_before(self, model, processor):
        compress(model, processor, dominant=K, contextual=M)
        seen = lengths_seen_by_language_model(model)
        text = ["USER : <image> what is this ASSISTANT :", "USER : <image> a cat ASSISTANT :"]
        inputs = processor(images=tiny.images(2), text=text, return_tensors="pt", padding=True)
        assert placeholders(inputs) == [TOKENS, TOKENS]
        generated = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert generated.shape == (2, inputs["input_ids"].shape[1] + 3)
        assert seen == [inputs["input_ids"].shape[1], 1, 1]

    def test_defaults_are_the_papers_64_tokens(self, processor):
        large = tiny.vision_config(image_size=140)
        model = compress(tiny.llava(tiny.llava_config(vision_config=large)), tiny.processor(size=140))
        assert features(model, torch.randn(1, 3, 140, 140)).shape[1] == 64
        assert last_zip(model).indices.shape[1] == 54

    @pytest.mark.parametrize("strategy", ["default", "full"])
    def test_both_select_strategies_make_the_budget(self, strategy):
        model = tiny.llava(tiny.llava_config(vision_feature_select_strategy=strategy))
        processor = tiny.processor(strategy)
        prompts = {"images": tiny.images(1), "text": "USER : <image> what", "return_tensors": "pt"}
        assert placeholders(processor(**prompts)) == [PATCHES + (strategy == "full")]
        compress(model, processor, dominant=K, contextual=M)
        inputs = processor(**prompts)
        assert placeholders(inputs) == [TOKENS]
        assert answer(model, **inputs).shape == (1, NEW)

    def test_chat_template(self, model, processor):
        compress(model, processor, dominant=K, contextual=M)
        content = [{"type": "image", "image": tiny.images(1)[0]}, {"type": "text", "text": "what is this"}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        assert placeholders(inputs) == [TOKENS]
        assert answer(model, **inputs).shape == (1, NEW)

    def test_processor_survives_save_and_load(self, model, processor, tmp_path):
        compress(model, processor, dominant=K, contextual=M)
        processor.save_pretrained(tmp_path)
        loaded = tiny.loaded_processor(tmp_path)
        inputs = loaded(images=tiny.images(1), text="USER : <image>", return_tensors="pt")
        assert placeholders(inputs) == [TOKENS]
        assert not [path for path in tmp_path.rglob("*.json") if "visionzip" in path.read_text()]

    def test_inner_model_can_be_compressed(self, model):
        compress(model.model, dominant=K, contextual=M)
        assert features(model, tiny.pixels(1)).shape[1] == TOKENS
        restore(model)
        assert features(model, tiny.pixels(1)).shape[1] == PATCHES

    def test_siglip_tower_without_cls(self):
        model = tiny.llava(tiny.llava_config("siglip", vision_feature_select_strategy="full"))
        processor = tiny.processor("full", has_cls=False)
        compress(model, processor, dominant=K, contextual=M)
        inputs = processor(images=tiny.images(1), text="USER : <image>", return_tensors="pt")
        assert placeholders(inputs) == [TOKENS]
        assert answer(model, **inputs).shape == (1, NEW)
        assert last_zip(model).assignment.shape == (1, PATCHES)
        assert not last_zip(model).has_cls


class TestOracles:
    @pytest.mark.parametrize("merge", ["residual", "mean"])
    def test_features_follow_the_paper_from_eager_attention(self, model, merge):
        """The recipe, from attention matrices and keys of an untouched model."""
        untouched = copy.deepcopy(model)
        untouched.model.vision_tower.set_attn_implementation("eager")
        keys = []
        vision_layers(untouched)[-2].self_attn.k_proj.register_forward_hook(lambda *call: keys.append(call[2]))
        with torch.no_grad():
            outputs = untouched.model.vision_tower(tiny.pixels(32), output_attentions=True, output_hidden_states=True)
            per_head = keys[0].unflatten(-1, (4, -1)).transpose(1, 2)
            tokens, indices, assignment = reference.zip(
                outputs.hidden_states[-2], per_head, outputs.attentions[-2], K, M, has_cls=True, merge=merge
            )
            expected = untouched.model.multi_modal_projector(tokens)
            got = features(compress(model, dominant=K, contextual=M, merge=merge), tiny.pixels(32))
        assert torch.equal(last_zip(model).indices, indices)
        assert torch.equal(last_zip(model).assignment, assignment)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)

    def test_logits_equal_the_unmodified_model_fed_the_same_embeddings(self, model):
        untouched = copy.deepcopy(model)
        compress(model, dominant=K, contextual=M)
        batch = padded([prompt([1, 5], TOKENS, [7, 8]), prompt([1, 9], TOKENS, [10])]) | {
            "pixel_values": tiny.pixels(2)
        }
        with torch.no_grad():
            expected = untouched(**as_embeddings(model, batch)).logits
            assert torch.equal(model(**batch).logits, expected)
            other = model(**(batch | {"pixel_values": tiny.pixels(2, seed=1)})).logits
        assert not torch.allclose(other, expected, atol=0.1), "the answer does not depend on the image"

    def test_two_images_in_one_prompt(self, model):
        untouched = copy.deepcopy(model)
        compress(model, dominant=K, contextual=M)
        rows = [prompt([1, 5], TOKENS, [7], TOKENS, [8]), prompt([1, 9], TOKENS, [10, 11])]
        batch = padded(rows) | {"pixel_values": tiny.pixels(3)}
        seen = lengths_seen_by_language_model(model)
        assert torch.equal(answer(model, **batch), answer(untouched, **as_embeddings(model, batch)))
        assert seen[0] == 2 * TOKENS + 4
        swapped = batch | {"pixel_values": tiny.pixels(3)[[1, 0, 2]]}
        with torch.no_grad():
            assert not torch.equal(model(**swapped).logits[0], model(**batch).logits[0])

    def test_beam_search(self, model):
        untouched = copy.deepcopy(model)
        compress(model, dominant=K, contextual=M)
        batch = padded([prompt([1, 5], TOKENS, [7, 8]), prompt([1, 9], TOKENS, [10])]) | {
            "pixel_values": tiny.pixels(2)
        }
        expected = answer(untouched, **as_embeddings(model, batch), num_beams=3)
        assert torch.equal(answer(model, **batch, num_beams=3), expected)

    @pytest.mark.skipif(
        TRANSFORMERS < (5, 18), reason="transformers <= 5.17 repeats pixels wrongly: beam search, several images a row"
    )
    def test_beam_search_with_two_images_in_one_prompt(self, model):
        untouched = copy.deepcopy(model)
        compress(model, dominant=K, contextual=M)
        rows = [prompt([1, 5], TOKENS, [7], TOKENS, [8]), prompt([1, 9], TOKENS, [10, 11])]
        batch = padded(rows) | {"pixel_values": tiny.pixels(3)}
        expected = answer(untouched, **as_embeddings(model, batch), num_beams=3)
        assert torch.equal(answer(model, **batch, num_beams=3), expected)


class TestBatches:
    ROWS = (prompt([1, 5, 6, 7, 8], TOKENS, [7, 8]), prompt([1, 9], TOKENS, [10]))

    def test_left_padding_generates_as_each_row_alone(self, compressed):
        pixels = tiny.pixels(2)
        together = answer(compressed, **padded(list(self.ROWS), "left"), pixel_values=pixels)
        for i, row in enumerate(self.ROWS):
            assert torch.equal(together[i], answer(compressed, **padded([row]), pixel_values=pixels[i : i + 1])[0])

    def test_right_padding_gives_the_logits_of_each_row_alone(self, compressed):
        pixels = tiny.pixels(2)
        with torch.no_grad():
            together = compressed(**padded(list(self.ROWS), "right"), pixel_values=pixels).logits
            for i, row in enumerate(self.ROWS):
                alone = compressed(**padded([row]), pixel_values=pixels[i : i + 1]).logits[0]
                torch.testing.assert_close(together[i, : len(row)], alone, rtol=1e-4, atol=1e-4)

    def test_text_only_prompt_as_the_unmodified_model(self, model):
        untouched = copy.deepcopy(model)
        compress(model, dominant=K, contextual=M)
        text = padded([[1, 5, 6, 7]])
        assert torch.equal(answer(model, **text), answer(untouched, **text))

    def test_text_only_row_beside_an_image(self, compressed):
        rows, pixels = [self.ROWS[0], [1, 11, 12]], tiny.pixels(1)
        together = answer(compressed, **padded(rows), pixel_values=pixels)
        assert torch.equal(together[0], answer(compressed, **padded(rows[:1]), pixel_values=pixels)[0])
        assert torch.equal(together[1], answer(compressed, **padded(rows[1:]))[0])

    def test_too_many_placeholders_are_refused(self, compressed):
        with pytest.raises(ValueError, match="Image features and image tokens do not match"):
            compressed(**padded([prompt([1], PATCHES, [5])]), pixel_values=tiny.pixels(1))


class TestCache:
    def test_cached_generation_equals_uncached(self, compressed):
        batch = padded([prompt([1, 5], TOKENS, [7, 8])]) | {"pixel_values": tiny.pixels(1)}
        # a model without a cache has to see the image in every forward, which generate does not arrange
        uncached = answer_without_cache(compressed, **as_embeddings(compressed, batch))
        assert torch.equal(answer(compressed, **batch), uncached)

    def test_second_turn_with_the_kept_cache(self, compressed):
        """Same tokens as reading the whole conversation anew, and the encoder is not run again."""
        pixels = tiny.pixels(1)
        first = compressed.generate(
            **padded([prompt([1, 5], TOKENS, [7, 8])]),
            pixel_values=pixels,
            max_new_tokens=4,
            do_sample=False,
            pad_token_id=0,
            return_dict_in_generate=True,
        )
        conversation = torch.cat([first.sequences, torch.tensor([[21, 22, 23]])], 1)
        turn = {"input_ids": conversation, "attention_mask": torch.ones_like(conversation)}
        runs = []
        compressed.model.vision_tower.register_forward_pre_hook(lambda *call: runs.append(1))
        anew = answer(compressed, **turn, pixel_values=pixels)
        assert runs == [1]
        kept = answer(compressed, **turn, past_key_values=first.past_key_values)
        assert runs == [1], "the vision tower ran again"
        assert torch.equal(kept, anew)


class TestEncoder:
    @pytest.mark.parametrize("layer", [-1, -2, 2])
    def test_layers_after_the_select_layer_are_not_computed(self, layer):
        model = tiny.llava(tiny.llava_config(vision_feature_layer=layer))
        expected = features(compress(model, dominant=K, contextual=M, early_exit=False), tiny.pixels(2))
        compress(model, dominant=K, contextual=M)
        ran = []
        for number, module in enumerate(vision_layers(model)):
            module.register_forward_hook(lambda *call, number=number: ran.append(number))
        assert torch.equal(features(model, tiny.pixels(2)), expected)
        assert ran == list(range(layer % (LAYERS + 1)))
        assert len(vision_layers(model)) == LAYERS

    def test_asking_for_the_towers_hidden_states_runs_all_layers(self, compressed):
        expected = features(compressed, tiny.pixels(1))
        assert torch.equal(features(compressed, tiny.pixels(1), output_hidden_states=True), expected)
        if TRANSFORMERS >= (5, 0):  # transformers 4 returns the features alone
            outputs = compressed.model.get_image_features(tiny.pixels(1), output_hidden_states=True)
            assert len(outputs.hidden_states) == LAYERS + 1

    def test_a_config_that_asks_for_hidden_states_does_no_harm(self, model):
        """transformers 5 hooks the layers that it sees at the first request, so it must never see a part of them."""
        model.model.vision_tower.config.output_hidden_states = True
        features(compress(model, dominant=K, contextual=M), tiny.pixels(1))
        restore(model)
        assert len(model.model.vision_tower(tiny.pixels(1)).hidden_states) == LAYERS + 1

    @pytest.mark.parametrize("implementation", ["sdpa", "eager"])
    def test_the_tower_keeps_its_attention(self, model, implementation):
        model.set_attn_implementation(implementation)
        expected = features(model, tiny.pixels(2))
        compress(model, dominant=K + 10, contextual=M)  # all 17 tokens: the merged ones are kept as they are
        assert model.model.vision_tower.config._attn_implementation == implementation
        got = features(model, tiny.pixels(2))
        decision = last_zip(model)
        order = torch.zeros_like(decision.assignment).scatter_(
            1, decision.assignment, torch.arange(PATCHES + 1).expand(2, -1)
        )
        patches = order != 0  # all rows but CLS, which the unmodified model drops
        taken = torch.stack([expected[i, order[i][patches[i]] - 1] for i in range(2)])
        torch.testing.assert_close(got[patches].view_as(taken), taken, rtol=0, atol=1e-6)

    def test_an_implementation_sees_the_towers_own_config(self, model):
        """Flash attention reads the implementation's name from the config of the module that it is given."""
        seen = []

        def like_flash(module, query, key, value, attention_mask, **kwargs):
            seen.append((module.config._attn_implementation, module.is_causal, module.training))
            return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

        AttentionInterface.register("like_a_kernel", like_flash)
        model.model.vision_tower.set_attn_implementation("like_a_kernel")
        compress(model, dominant=K, contextual=M)
        features(model, tiny.pixels(1))
        assert seen == [("like_a_kernel", False, False)] * (LAYERS - 1)

    def test_a_later_change_of_attention_implementation_is_honoured(self, model):
        names = []

        def noting(module, *args, **kwargs):
            names.append(module.config._attn_implementation)
            return sdpa_attention_forward(module, *args, **kwargs)

        AttentionInterface.register("noting", noting)
        expected = features(compress(model, dominant=K, contextual=M), tiny.pixels(2))
        model.set_attn_implementation({"vision_config": "noting"})
        torch.testing.assert_close(features(model, tiny.pixels(2)), expected)
        assert names == ["noting"] * (LAYERS - 1)

    def test_a_removed_tap_is_an_error_that_says_how_to_mend_it(self, compressed):
        expected = features(compressed, tiny.pixels(1))
        vision_layers(compressed)[-2].self_attn.config = compressed.model.vision_tower.config
        with pytest.raises(RuntimeError, match=r"layer 2 .* recorded 0 times .* visionzip_ext\.compress\(model"):
            features(compressed, tiny.pixels(1))
        compress(compressed, dominant=K, contextual=M)
        assert torch.equal(features(compressed, tiny.pixels(1)), expected)

    def test_nothing_is_kept_of_forwards_that_are_not_zipped(self, compressed):
        """Of the tower's own use, and of gradient checkpointing's second forward; their tensors would stay alive."""
        compressed.train().gradient_checkpointing_enable({"use_reentrant": False})
        features(compressed, tiny.pixels(1)).sum().backward()
        compressed.model.vision_tower(tiny.pixels(1))
        tower = compressed.model._visionzip.tower
        assert tower._select_layer_output is None
        assert tower._tap._log is None

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, model, dtype):
        expected = features(compress(model, dominant=K, contextual=M), tiny.pixels(1))
        model.to(dtype)
        got = features(model, tiny.pixels(1).to(dtype))
        assert got.dtype == dtype
        assert got.shape == expected.shape
        batch = padded([prompt([1, 5], TOKENS, [7])])
        assert answer(model, **batch, pixel_values=tiny.pixels(1).to(dtype)).shape == (1, NEW)

    @pytest.mark.parametrize("compress_first", [True, False])
    def test_compiled_tower(self, model, compress_first):
        expected = features(compress(copy.deepcopy(model), dominant=K, contextual=M), tiny.pixels(2))
        torch._dynamo.reset()
        if compress_first:
            compress(model, dominant=K, contextual=M)
        model.model.vision_tower.compile(backend="aot_eager", fullgraph=True)
        if not compress_first:
            compress(model, dominant=K, contextual=M)
        with torch.no_grad():
            for _ in range(2):
                torch.testing.assert_close(features(model, tiny.pixels(2)), expected)
        assert len(vision_layers(model)) == LAYERS

    @pytest.mark.parametrize("compress_first", [True, False])
    def test_a_compiled_tower_in_its_place(self, model, compress_first):
        expected = features(compress(copy.deepcopy(model), dominant=K, contextual=M), tiny.pixels(2))
        torch._dynamo.reset()
        graphs = CompileCounterWithBackend("aot_eager")
        if compress_first:
            features(compress(model, dominant=K, contextual=M), tiny.pixels(2))
        model.model.vision_tower = torch.compile(model.model.vision_tower, backend=graphs, fullgraph=True)
        if not compress_first:
            compress(model, dominant=K, contextual=M)
        with torch.no_grad():
            for _ in range(2):
                torch.testing.assert_close(features(model, tiny.pixels(2)), expected)
        assert graphs.frame_count == 1
        compress(model, dominant=K, contextual=M + 1)
        assert features(model, tiny.pixels(2)).shape[1] == TOKENS + 1
        restore(model).model.vision_tower = model.model.vision_tower._orig_mod
        assert features(model, tiny.pixels(2)).shape[1] == PATCHES

    def test_compiled_from_pixels_to_features_in_one_graph(self, compressed):
        expected = features(compressed, tiny.pixels(2))
        torch._dynamo.reset()
        graph = torch.compile(compressed.model.get_image_features, backend="aot_eager", fullgraph=True)
        with torch.no_grad():
            result = graph(tiny.pixels(2))
        torch.testing.assert_close(torch.stack(list(getattr(result, "pooler_output", result))), expected)
        assert torch.equal(features(compressed, tiny.pixels(2)), expected)


class TestOnlyThisInstance:
    def test_a_second_model_of_the_same_config_object(self):
        config = tiny.llava_config()
        first, second = tiny.llava(config), tiny.llava(config, seed=1)
        expected = features(second, tiny.pixels(1))
        compress(first, dominant=K, contextual=M)
        assert torch.equal(features(second, tiny.pixels(1)), expected)
        assert second.config.vision_config._attn_implementation != "visionzip"
        with pytest.raises(ValueError, match="not compressed"):
            last_zip(second)

    def test_clip_text_and_vision_encoder_and_the_classes(self, model):
        text = CLIPTextConfig(
            vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        )
        clip = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=tiny.vision_config().to_dict())).eval()
        inputs = {"input_ids": torch.arange(8)[None], "pixel_values": tiny.pixels(1)}

        def state():
            with torch.no_grad():
                outputs = clip(**inputs)
            return outputs.text_embeds, outputs.image_embeds

        def classes():
            return {
                (name, attribute): value
                for module in (modeling_clip, modeling_llava)
                for name, cls in vars(module).items()
                if isinstance(cls, type)
                for attribute, value in vars(cls).items()
                if callable(value)
            }

        text_before, image_before = state()
        classes_before = classes()
        features(compress(model, dominant=K, contextual=M), tiny.pixels(1))
        text_after, image_after = state()
        assert torch.equal(text_before, text_after)
        assert torch.equal(image_before, image_after)
        assert classes() == classes_before

    def test_two_budgets_side_by_side(self, model):
        other, other_processor = copy.deepcopy(model), tiny.processor()
        processor = tiny.processor()
        compress(model, processor, dominant=K, contextual=M)
        compress(other, other_processor, dominant=3, contextual=1)
        for one, its_processor, tokens in ((model, processor, TOKENS), (other, other_processor, 4)) * 2:
            inputs = its_processor(images=tiny.images(1), text="USER : <image> what", return_tensors="pt")
            assert placeholders(inputs) == [tokens]
            answer(one, **inputs)
            assert last_zip(one).assignment.max() == tokens - 1
        restore(model, processor)
        assert features(other, tiny.pixels(1)).shape[1] == 4

    def test_one_processor_for_two_budgets(self, model, processor):
        other = copy.deepcopy(model)
        compress(model, processor, dominant=K, contextual=M)
        way_out = "LlavaProcessor was changed for another model, .* give each model a processor of its own"
        with pytest.warns(RuntimeWarning, match=way_out):
            compress(other, processor, dominant=3, contextual=1)
        inputs = processor(images=tiny.images(1), text="USER : <image> what", return_tensors="pt")
        assert placeholders(inputs) == [4]

    @pytest.mark.parametrize("end", ["restored", "deleted", "of the same budget", "copied", "the same"])
    def test_one_processor_that_is_free(self, processor, end):
        model, other = tiny.llava(), tiny.llava()
        compress(model, processor, dominant=K, contextual=M)
        budget = {"dominant": 3, "contextual": 1}
        if end == "restored":
            restore(model, processor)
        elif end == "deleted":
            del model
        elif end == "of the same budget":
            budget = {"dominant": K, "contextual": M}
        elif end == "copied":
            other, processor = copy.deepcopy(model), copy.deepcopy(processor)
        elif end == "the same":
            other = model
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            compress(other, processor, **budget)

    def test_threads_share_models(self, model):
        """Four threads on one model, and four on another with another budget: each gets its own image's features."""
        other = copy.deepcopy(model)
        compress(model, dominant=K, contextual=M)
        compress(other, dominant=3, contextual=1)
        images = [tiny.pixels(1, seed=seed) for seed in range(4)]
        jobs = [(one, image, features(one, image).detach()) for one in (model, other) for image in images]
        wrong, ready = [], threading.Barrier(len(jobs))

        def work(one, image, expected):
            ready.wait()
            for _ in range(15):
                try:
                    with torch.no_grad():
                        if not torch.equal(features(one, image), expected):
                            wrong.append("another image's features")
                except Exception as error:
                    wrong.append(error)

        threads = [threading.Thread(target=work, args=job) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []

    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
    def test_a_copy_is_compressed_and_on_its_own(self, compressed, duplicate):
        expected = features(compressed, tiny.pixels(1))
        twin = duplicate(compressed)
        assert torch.equal(features(twin, tiny.pixels(1)), expected)
        with torch.no_grad():
            twin.model.multi_modal_projector.linear_1.weight.zero_()
        assert not torch.equal(features(twin, tiny.pixels(1)), expected), "the copy runs the original's weights"
        assert torch.equal(features(compressed, tiny.pixels(1)), expected)
        restore(twin)
        assert features(twin, tiny.pixels(1)).shape[1] == PATCHES
        assert features(compressed, tiny.pixels(1)).shape[1] == TOKENS


class TestRestore:
    def test_model_and_processor_are_as_before(self, model, processor):
        batch = padded([prompt([1, 5], PATCHES, [7])]) | {"pixel_values": tiny.pixels(1)}
        with torch.no_grad():
            expected = model(**batch).logits
        state, config = snapshots.instances(model), model.config.to_dict()
        processor_state = dict(vars(processor))
        compress(model, processor, dominant=K, contextual=M)
        features(model, tiny.pixels(1))
        assert snapshots.instances(model) != state
        assert restore(model, processor) is model
        assert snapshots.instances(model) == state
        assert model.config.to_dict() == config
        assert vars(processor) == processor_state
        with torch.no_grad():
            assert torch.equal(model(**batch).logits, expected)

    def test_after_two_calls_of_compress(self, model, processor):
        original = processor.num_additional_image_tokens
        features(model, tiny.pixels(1))
        state = snapshots.instances(model)
        for dominant in (K, 3):
            compress(model, processor, dominant=dominant, contextual=M)
            assert features(model, tiny.pixels(1)).shape[1] == dominant + M
            inputs = processor(images=tiny.images(1), text="USER : <image>", return_tensors="pt")
            assert placeholders(inputs) == [dominant + M]
        restore(model, processor)
        assert snapshots.instances(model) == state
        assert processor.num_additional_image_tokens == original

    def test_a_refused_budget_leaves_the_earlier_one(self, model, processor):
        compress(model, processor, dominant=K, contextual=M)
        with pytest.raises(ValueError, match="dominant=50"):
            compress(model, processor, dominant=50, contextual=M)
        with pytest.raises(ValueError, match="patch_size"):
            compress(model, tiny.processor(patch=7), dominant=3, contextual=1)
        assert features(model, tiny.pixels(1)).shape[1] == TOKENS

    def test_processor_may_follow_later(self, model, processor):
        compress(model, processor, dominant=K, contextual=M)
        way_out = r"LlavaProcessor .* still writes 5 \+ 2 placeholders .* visionzip_ext.restore\(model, processor\)"
        with pytest.warns(RuntimeWarning, match=way_out):
            restore(model)
        restore(model, processor)
        assert processor.num_additional_image_tokens == 1

    def test_no_warning_of_a_processor_that_is_not_this_models(self, model, processor):
        other = copy.deepcopy(model)
        compress(model, processor, dominant=K, contextual=M)
        compress(other, processor, dominant=K, contextual=M)
        compress(copy.deepcopy(model), tiny.processor(), dominant=3, contextual=1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            restore(model)
            restore(other, processor)

    def test_nothing_to_restore(self, model, processor):
        with pytest.raises(ValueError, match="not compressed, there is nothing to restore"):
            restore(model, processor)

    def test_saved_model_is_the_unmodified_one_with_the_setting(self, model, tmp_path):
        model.generation_config.eos_token_id = 2
        model.save_pretrained(tmp_path / "before")
        compress(model, dominant=K, contextual=M)
        expected = features(model, tiny.pixels(1))
        model.save_pretrained(tmp_path / "after")
        before, after = (json.loads((tmp_path / run / "config.json").read_text()) for run in ("before", "after"))
        setting = after.pop("visionzip")
        assert after == before
        assert (setting["dominant"], setting["contextual"]) == (K, M)
        loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path / "after").eval()
        assert features(loaded, tiny.pixels(1)).shape[1] == PATCHES
        torch.testing.assert_close(features(compress_as_configured(loaded), tiny.pixels(1)), expected)
        restore(loaded)
        loaded.save_pretrained(tmp_path / "restored")
        assert "visionzip" not in (tmp_path / "restored" / "config.json").read_text()

    @pytest.mark.parametrize("strategy", ["default", "full"])
    @pytest.mark.parametrize("tower", ["clip", "siglip"])
    @pytest.mark.parametrize("tokens", [(K, M), (PATCHES - 1, 0), (PATCHES - 3, 3)])
    def test_saved_and_loaded_together_with_its_processor(self, tmp_path, strategy, tower, tokens):
        model = tiny.llava(tiny.llava_config(tower, vision_feature_select_strategy=strategy))
        processor = tiny.processor(strategy, has_cls=tower == "clip")
        prompts = {"images": tiny.images(1), "text": "USER : <image> what", "return_tensors": "pt"}
        inputs, original = processor(**prompts), processor.num_additional_image_tokens
        expected = answer(model, **inputs)
        compress(model, processor, dominant=tokens[0], contextual=tokens[1])
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)

        loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
        loaded.generation_config.eos_token_id = None
        its_processor = tiny.loaded_processor(tmp_path)
        compress_as_configured(loaded, its_processor)
        assert placeholders(its_processor(**prompts)) == [sum(tokens)]
        compress(loaded, its_processor, dominant=3, contextual=1)
        assert placeholders(its_processor(**prompts)) == [4]
        restore(loaded, its_processor)
        assert its_processor.num_additional_image_tokens == original
        assert torch.equal(answer(loaded, **its_processor(**prompts)), expected)

    def test_a_saved_processor_compressed_to_another_budget(self, model, processor, tmp_path):
        compress(model, processor, dominant=K, contextual=M)
        processor.save_pretrained(tmp_path)
        its_processor = tiny.loaded_processor(tmp_path)
        restore(compress(model, its_processor, dominant=3, contextual=1), its_processor)
        assert its_processor.num_additional_image_tokens == 1

    def test_an_odd_number_of_the_processors_own_comes_back(self, model, processor):
        processor.num_additional_image_tokens = 3
        restore(compress(model, processor, dominant=K, contextual=M), processor)
        assert processor.num_additional_image_tokens == 3

    def test_nothing_configured(self, model):
        with pytest.raises(ValueError, match="has no setting under 'visionzip'"):
            compress_as_configured(model)


class TestTraining:
    @staticmethod
    def loss(model) -> torch.Tensor:
        batch = padded([prompt([1, 5], TOKENS, [7, 8]), prompt([1, 9], TOKENS, [10])], "right")
        labels = batch["input_ids"].masked_fill(
            (batch["attention_mask"] == 0) | (batch["input_ids"] == IMAGE_TOKEN), -100
        )
        return model(**batch, pixel_values=tiny.pixels(2), labels=labels).loss

    @staticmethod
    def gradients(model) -> dict[str, torch.Tensor]:
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}

    def test_gradients_reach_projector_language_model_and_tower(self, compressed):
        self.loss(compressed.train()).backward()
        reached = self.gradients(compressed)
        wanted = ["multi_modal_projector.linear_1", "language_model.layers.0", "lm_head", "embeddings.patch_embedding"]
        wanted += [f"encoder.layers.{number}.self_attn.v_proj" for number in range(LAYERS - 1)]
        for part in wanted:
            assert any(part in name for name in reached), part
        assert not any(f"encoder.layers.{LAYERS - 1}" in name for name in reached)

    def test_gradients_are_those_of_plain_pytorch_with_the_same_decision(self, model):
        untouched = copy.deepcopy(model)
        batch = padded([prompt([1, 5], TOKENS, [7, 8]), prompt([1, 9], TOKENS, [10])], "right")
        compress(model, dominant=K, contextual=M)
        model(**batch, pixel_values=tiny.pixels(2)).logits.logsumexp(-1).sum().backward()

        hidden = untouched.model.vision_tower(tiny.pixels(2), output_hidden_states=True).hidden_states[-2]
        tokens = reference.merge(hidden, last_zip(model).assignment, K, M, merge="residual")
        embeddings = untouched.get_input_embeddings()(batch["input_ids"])
        image_rows = (batch["input_ids"] == IMAGE_TOKEN).unsqueeze(-1)
        embeddings = embeddings.masked_scatter(image_rows, untouched.model.multi_modal_projector(tokens))
        logits = untouched(inputs_embeds=embeddings, attention_mask=batch["attention_mask"]).logits
        logits.logsumexp(-1).sum().backward()

        expected, got = dict(untouched.named_parameters()), dict(model.named_parameters())
        for name in self.gradients(untouched):
            scale = max(1.0, float(expected[name].grad.abs().max()))  # a key bias has none but rounding error
            torch.testing.assert_close(
                got[name].grad, expected[name].grad, rtol=0, atol=1e-4 * scale, msg=f"gradient of {name}"
            )

    def test_projector_alone(self, compressed):
        compressed.train().requires_grad_(False)
        compressed.model.multi_modal_projector.requires_grad_(True)
        self.loss(compressed).backward()
        assert self.gradients(compressed)
        assert all("multi_modal_projector" in name for name in self.gradients(compressed))

    @pytest.mark.parametrize("use_reentrant", [True, False])
    def test_gradient_checkpointing(self, compressed, use_reentrant):
        compressed.train()
        self.loss(compressed).backward()
        expected = self.gradients(compressed)
        compressed.zero_grad()
        compressed.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        attention_calls = []
        vision_layers(compressed)[-2].self_attn.q_proj.register_forward_hook(lambda *call: attention_calls.append(1))
        loss = self.loss(compressed)
        loss.backward()
        got = self.gradients(compressed)
        assert len(attention_calls) == 2, "nothing was recomputed, so nothing was tested"
        assert got.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(got[name], gradient, msg=lambda text, name=name: f"{name}: {text}")
        self.loss(compressed)


class TestDecision:
    def test_last_zip_tells_what_became_of_each_token(self, compressed):
        assert last_zip(compressed) is None
        features(compressed, tiny.pixels(2))
        decision = last_zip(compressed)
        assert decision.grid == (4, 4)
        assert decision.has_cls
        assert (decision.dominant, decision.contextual) == (K, M)
        assert decision.indices.shape == (2, K)
        assert decision.assignment.shape == (2, PATCHES + 1)
        assert torch.equal(decision.indices[:, 0], torch.zeros(2, dtype=torch.int64))
        kept = decision.assignment.gather(1, decision.indices)
        assert torch.equal(kept, torch.arange(K).expand(2, -1))

    def test_it_carries_over_to_another_tensor(self, compressed):
        features(compressed, tiny.pixels(2))
        decision = last_zip(compressed)
        other = torch.randn(2, PATCHES + 1, 3)
        merged = visionzip_ext.merge(other, decision.assignment, decision.dominant, decision.contextual)
        assert torch.equal(merged[:, :K], other.gather(1, decision.indices[..., None].expand(-1, -1, 3)))

    def test_supported_models_are_class_names(self):
        assert "LlavaForConditionalGeneration" in visionzip_ext.supported_models()


class TestBadInput:
    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"dominant": 0}, ValueError, "dominant must be at least 1, got 0"),
            ({"dominant": -3}, ValueError, "dominant must be at least 1, got -3"),
            ({"contextual": -1}, ValueError, "contextual must be at least 0, got -1"),
            ({"dominant": 5.0}, TypeError, "dominant must be an int, got 5.0 of type float"),
            ({"contextual": "2"}, TypeError, "contextual must be an int, got '2' of type str"),
            ({"dominant": True}, TypeError, "dominant must be an int, got True of type bool"),
            ({"early_exit": "no"}, TypeError, "early_exit must be True or False, got 'no' of type str"),
            ({"merge": "average"}, ValueError, 'merge must be "residual" or "mean", got \'average\''),
            ({"dominant": 16}, ValueError, r"dominant=16 and contextual=2 ask for 18 tokens .* makes 17; .* <= 17"),
        ],
    )
    def test_budget(self, model, changes, error, message):
        with pytest.raises(error, match=message):
            compress(model, **({"dominant": K, "contextual": M} | changes))

    @pytest.mark.parametrize("integer", [np.int64, np.uint8, torch.tensor])
    def test_integers_of_other_types(self, model, processor, tmp_path, integer):
        compress(model, processor, dominant=integer(K), contextual=integer(M))
        assert features(model, tiny.pixels(1)).shape[1] == TOKENS
        model.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["visionzip"]["dominant"] == K

    @pytest.mark.parametrize(
        ("wrap", "path"),
        [
            (torch.compile, "model._orig_mod"),
            (torch.nn.DataParallel, "model.module"),
            (as_by_peft, "model.base_model.model"),
            (
                lambda model: torch.nn.DataParallel(torch.compile(as_by_peft(model))),
                "model.module._orig_mod.base_model.model",
            ),
        ],
    )
    def test_wrapped_model(self, model, wrap, path):
        for function in (compress, restore, last_zip, visionzip_ext.visionzip, compress_as_configured):
            with pytest.raises(
                TypeError, match=f"around a supported model; pass that, {path}, before or after it is wrapped"
            ):
                function(wrap(model))

    @pytest.mark.parametrize("broken", [torch.nn.Linear(2, 2), "llava", None])
    def test_unknown_model_lists_the_supported_ones(self, broken):
        for function in (compress, restore, last_zip):
            with pytest.raises(TypeError, match=r"does not know; .*LlavaForConditionalGeneration, LlavaModel"):
                function(broken)

    @pytest.mark.parametrize(
        ("processor", "error", "message"),
        [
            (tiny.tokenizer, TypeError, "processor must be the model's LlavaProcessor, got "),
            (
                lambda: tiny.processor(patch=None),
                ValueError,
                "processor.patch_size is None, .* set processor.patch_size = 14",
            ),
            (lambda: tiny.processor(patch=7), ValueError, "processor.patch_size is 7"),
            (lambda: tiny.processor(size=112), ValueError, "images of 112 x 112 pixels, .* takes 56 x 56"),
        ],
    )
    def test_processor_that_does_not_match(self, model, processor, error, message):
        with pytest.raises(error, match=message):
            compress(model, processor(), dominant=K, contextual=M)
        assert features(model, tiny.pixels(1)).shape[1] == PATCHES, "the model was changed all the same"

    def test_processor_with_another_image_token(self, model, processor):
        processor.image_token_id = 7
        with pytest.raises(ValueError, match=r"'<image>' has id 7, the model expects 99"):
            compress(model, processor, dominant=K, contextual=M)

    @pytest.mark.parametrize(
        ("layer", "message"),
        [
            ([], "vision_feature_layer is empty"),
            ([-2, 7], "vision_feature_layer=7 is out of range"),
            (5, r"vision_feature_layer=5 is out of range for a vision tower of 4 layers; expected -4..-1 or 1..4"),
            (-6, "vision_feature_layer=-6 is out of range"),
            (0, "vision_feature_layer=0 names the patch embeddings"),
            (-5, "vision_feature_layer=-5 names the patch embeddings"),
        ],
    )
    def test_select_layer(self, layer, message):
        model = tiny.llava()
        model.config.vision_feature_layer = layer
        with pytest.raises(ValueError, match=message):
            compress(model, dominant=K, contextual=M)

    def test_select_layer_in_a_list(self):
        model = tiny.llava()
        model.config.vision_feature_layer = [-2]
        assert features(compress(model, dominant=K, contextual=M), tiny.pixels(1)).shape[1] == TOKENS

    def test_select_layer_changed_after_compress(self, compressed):
        with pytest.raises(
            ValueError, match=r"vision_feature_layer=-3 .* compressed for, hidden state 3 .*compress again"
        ):
            compressed.model.get_image_features(tiny.pixels(1), vision_feature_layer=-3)
        compressed.config.vision_feature_layer = -3
        with pytest.raises(ValueError, match="vision_feature_layer=-3"):
            features(compressed, tiny.pixels(1))

    def test_select_strategy(self, compressed):
        with pytest.raises(ValueError, match='vision_feature_select_strategy must be "default" or "full", got \'cls\''):
            features(compressed, tiny.pixels(1), vision_feature_select_strategy="cls")

    def test_image_sizes(self, compressed):
        with pytest.raises(ValueError, match="image_sizes is only for towers that pack images"):
            compressed.model.get_image_features(tiny.pixels(1), image_sizes=torch.tensor([[56, 56]]))

    def test_vision_tower_of_another_kind(self, model):
        model.model.vision_tower.config.model_type = "pixtral"
        with pytest.raises(TypeError, match=r"vision tower of type 'pixtral' .*supported: clip_vision_model, siglip"):
            compress(model, dominant=K, contextual=M)
