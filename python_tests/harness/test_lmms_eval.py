"""lmms-eval's own evaluation, offline, with compressed models: `make test-lmms`, in an environment that has it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny_families, tiny_qwen
from support.evaluation import needs_packages

import visionzip_ext
from evaluation import checkpoint, lmms_task, measure
from evaluation.__main__ import KEPT, main
from evaluation.providers import ALL_TOKENS, PROVIDERS

if importlib.util.find_spec("lmms_eval") is None:
    pytest.skip("lmms-eval is not installed; `make test-lmms` installs it and runs this", allow_module_level=True)

from lmms_eval import models
from lmms_eval.api.instance import Instance
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager

SCENES = 8
NAMES = ("visionzip_llava_hf", "visionzip_llava_onevision", "visionzip_qwen2_5_vl")
MODES = {"full": "compress=False", "zipped": "dominant=14,contextual=2"}
FAMILIES = {family.name: family for family in (*tiny_families.FAMILIES, *tiny_qwen.FAMILIES)}


@pytest.fixture(autouse=True, scope="module")
def _offline(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        import datasets.config
        import huggingface_hub.constants

        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the command writes."""
    folder = tmp_path_factory.mktemp("lmms")
    assert main(["lmms-task", "--output", str(folder), "--scenes", str(SCENES)]) == 0
    return folder


@pytest.fixture(scope="module")
def tasks(folder) -> TaskManager:
    return TaskManager("ERROR", include_path=str(folder / "task"))


@pytest.fixture(scope="module")
def right() -> dict[str, torch.Tensor]:
    """The bench's own judgement of the same answers: (scenes, questions) of bool."""
    model, processor = checkpoint.load(KEPT)
    asked = measure.examination("validation", SCENES)
    return {
        "full": measure.examine(model, processor, asked, ALL_TOKENS, checkpoint.IMAGE_TOKENS),
        "zipped": measure.examine(model, processor, asked, PROVIDERS["visionzip"], 16),
    }


def evaluate(folder: Path, tasks: TaskManager, arguments: str, batch_size: int, **options: Any) -> dict[str, Any]:
    return simple_evaluate(
        "visionzip_llava_hf",
        f"pretrained={folder / 'checkpoint'},{arguments}",
        tasks=[lmms_task.TASK],
        task_manager=tasks,
        batch_size=batch_size,
        device="cpu",
        bootstrap_iters=0,
        **options,
    )


def test_the_names_are_in_the_registry():
    assert set(NAMES) <= set(models.list_available_models())
    for name in NAMES:
        assert not models.get_model(name).is_simple


@needs_packages
@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("mode", MODES)
def test_answers_are_those_of_the_bench(folder, tasks, right, mode, batch_size):
    results = evaluate(folder, tasks, MODES[mode], batch_size)
    samples = sorted(results["samples"][lmms_task.TASK], key=lambda sample: sample["doc_id"])
    assert all(sample["filtered_resps"][0].strip() for sample in samples)
    judged = torch.tensor([sample["accuracy"] == 1 for sample in samples]).view(right[mode].shape)
    assert torch.equal(judged, right[mode])
    assert results["results"][lmms_task.TASK]["accuracy,none"] == pytest.approx(float(right[mode].double().mean()))
    assert not torch.equal(right["full"], right["zipped"])


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ("dominnt=14", TypeError, "unknown model argument dominnt; expected some of .*dominant"),
        ("compress=False,dominant=14", ValueError, "compress=False, but there are options: dominant"),
        ("dominant=0", ValueError, "dominant"),
        ("dominant=144,contextual=2", ValueError, "144"),
        ("keep=0.5", ValueError, "keep"),
        ("merge=max", ValueError, "merge"),
    ],
)
@needs_packages
def test_wrong_options_end_the_evaluation(folder, tasks, arguments, error, match):
    with pytest.raises(error, match=match):
        evaluate(folder, tasks, arguments, 1)


@needs_packages
def test_the_command_tells_of_wrong_options_and_writes_nothing(folder, tmp_path):
    command = [sys.executable, "-m", "lmms_eval", "--model", "visionzip_llava_hf", "--device", "cpu"]
    command += ["--model_args", f"pretrained={folder / 'checkpoint'},dominnt=14", "--tasks", lmms_task.TASK]
    command += ["--include_path", str(folder / "task"), "--output_path", str(tmp_path / "results")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert "TypeError: unknown model argument dominnt" in done.stderr
    assert not list(tmp_path.rglob("*_results.json"))


@needs_packages
def test_an_error_in_generate_ends_the_evaluation(folder, tasks, monkeypatch):
    """lmms-eval's own class would go on with empty answers."""

    def out_of_memory(*args, **kwargs):
        raise torch.OutOfMemoryError("no memory left")

    from transformers import LlavaForConditionalGeneration

    monkeypatch.setattr(LlavaForConditionalGeneration, "generate", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError, match="no memory left"):
        evaluate(folder, tasks, MODES["zipped"], 8, limit=8)


@needs_packages
def test_a_checkpoints_own_setting_is_used_where_no_option_is_given(folder):
    path = folder / "checkpoint"
    lm = models.get_model("visionzip_llava_hf")(pretrained=str(path), device="cpu")
    assert lm.config.visionzip["dominant"] == 54
    tuned = folder / "tuned"
    visionzip_ext.compress(lm.model, lm._image_processor, dominant=20, contextual=3, merge="mean")
    lm.model.save_pretrained(tuned)
    lm._image_processor.save_pretrained(tuned)
    lm = models.get_model("visionzip_llava_hf")(pretrained=str(tuned), device="cpu")
    assert (lm.config.visionzip["dominant"], lm.config.visionzip["merge"]) == (20, "mean")


# ---- the other families, tiny and random -----------------------------------------------------------------------------


class _Loading:
    """In place of AutoProcessor: parts of the tiny processors cannot be saved where torchvision is missing."""

    def __init__(self, loaded: Any) -> None:
        self.from_pretrained = lambda *args, **kwargs: loaded


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Makes lmms-eval's model, by name, of a tiny family."""

    def make(name: str, family: Any, **options: Any) -> Any:
        model, processor = family.model(), family.processor()
        model.save_pretrained(tmp_path)
        own = models.get_model(name)
        for module in {sys.modules[of.__module__] for of in own.__mro__}:
            for auto, loaded in (("AutoProcessor", processor), ("AutoTokenizer", processor.tokenizer)):
                if hasattr(module, auto):
                    monkeypatch.setattr(module, auto, _Loading(loaded))
        return own(pretrained=str(tmp_path), device="cpu", device_map="cpu", **options)

    return make


def generate(lm: Any, contents: Sequence[list[dict[str, Any]]], generation: Sequence[dict[str, Any]]) -> list[Any]:
    """What lmms-eval gets as answers to messages of one turn each."""
    lm.task_dict = {"task": {"test": contents}}
    requests = [
        Instance(
            "generate_until",
            ("", _turn, own, number, "task", "test"),
            number,
            metadata={"task": "task", "doc_id": number, "repeats": 1},
        )
        for number, own in enumerate(generation)
    ]
    return lm.generate_until(requests)


def answers(*asked: Any) -> list[str]:
    return [result.text for result in generate(*asked)]


def _turn(content: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def asked(images: Sequence[Any]) -> list[list[dict[str, Any]]]:
    return [[{"type": "image", "url": image}, {"type": "text", "text": "what is this"}] for image in images]


@pytest.fixture
def video(tmp_path) -> str:
    """Ten frames of 64 x 96, as a file."""
    import cv2

    path = str(tmp_path / "video.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 5, (96, 64))
    for frame in np.random.default_rng(0).integers(0, 255, (10, 64, 96, 3), dtype=np.uint8):
        writer.write(frame)
    writer.release()
    return path


def test_batches_mix_images_videos_and_text(load, video):
    """Answers come in the order of the questions, each as if it were alone, and each as long as it was asked for."""
    family = FAMILIES["LlavaOnevision"]
    contents = asked(family.images(4))
    contents.insert(1, [{"type": "text", "text": "what is a dog"}])
    contents.insert(2, [{"type": "video", "url": video}, {"type": "text", "text": "what is this"}])
    generation = [{"max_new_tokens": 3 + number % 2, "until": ["\n"]} for number in range(len(contents))]
    options = {"dominant": 5, "contextual": 2, "max_frames_num": 4}
    said = {
        size: answers(load("visionzip_llava_onevision", family, batch_size=size, **options), contents, generation)
        for size in (1, 4)
    }
    assert said[1] == said[4]
    assert [len(answer.split()) for answer in said[1]] == [3, 4, 3, 4, 3, 4]
    assert said[1] != answers(load("visionzip_llava_onevision", family, compress=False), contents, generation)


def test_a_video_has_as_many_frames_as_were_asked_for(load, video):
    lm = load("visionzip_llava_onevision", FAMILIES["LlavaOnevision"], dominant=5, contextual=2, max_frames_num=3)
    answers(lm, [[{"type": "video", "url": video}, {"type": "text", "text": "what"}]], [{"max_new_tokens": 1}])
    assert visionzip_ext.last_zip(lm.model).indices.shape == (3, 5)


def test_answers_end_where_the_model_ends_them(load):
    """And what fills up a batch is not counted."""
    family = FAMILIES["Llava"]
    lm = load("visionzip_llava_hf", family, dominant=5, contextual=2, batch_size=4)
    contents, generation = asked(family.images(4)), [{"max_new_tokens": 6}] * 4
    first = answers(lm, contents, generation)[1].split()
    lm.tokenizer.add_special_tokens({"eos_token": first[2]})
    result = generate(lm, contents, generation)[1]
    assert result.text.split() == first[:2]
    assert result.token_counts.output_tokens == 3


def test_qwen_keeps_a_share(load, monkeypatch):
    """The same answers one at a time and in batches, of as many tokens as `keep` says."""
    from lmms_eval.models.chat import qwen2_5_vl

    if qwen2_5_vl.process_vision_info is None:  # qwen-vl-utils imports torchvision, which PyTorch for CPUs cannot load
        monkeypatch.setattr(qwen2_5_vl, "process_vision_info", _images_of)
    family = FAMILIES["Qwen2_5_VL"]
    contents, generation = asked(tiny_qwen.images(3)), [{"max_new_tokens": 4}] * 3
    lm = load("visionzip_qwen2_5_vl", family, keep=0.25, batch_size=1)
    lm.model.float()
    alone = answers(lm, contents, generation)
    kept = visionzip_ext.last_zip(lm.model)
    lm = load("visionzip_qwen2_5_vl", family, keep=0.25, batch_size=3)
    lm.model.float()
    assert answers(lm, contents, generation) == alone
    assert all(answer.strip() for answer in alone)
    assert lm.config.visionzip["keep"] == 0.25
    assert kept is not None


def _images_of(batch: list, **kwargs: Any) -> tuple[list, None, dict]:
    parts = [part for messages in batch for message in messages for part in message["content"]]
    return [part["image"] for part in parts if part["type"] == "image"], None, {}
