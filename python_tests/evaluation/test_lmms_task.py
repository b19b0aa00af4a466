"""What `python -m evaluation lmms-task` writes; python_tests/harness lets lmms-eval read it."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from support.evaluation import needs_packages
from transformers import AutoModelForImageTextToText, AutoProcessor

from evaluation import checkpoint, measure
from evaluation.__main__ import KEPT, main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lmms")
    assert main(["lmms-task", "--output", str(folder), "--scenes", "2", "--split", "held-out", "--seed", "3"]) == 0
    return folder


@needs_packages
def test_the_task_has_the_examinations_questions_and_images(folder):
    asked = measure.examination("held-out", 2, 3)
    rows = [json.loads(line) for line in (folder / "task" / "scenes.jsonl").read_text().splitlines()]
    assert [(row["question"], row["answer"], row["topic"]) for row in rows] == [
        (question.text, question.answer, question.topic) for questions in asked.questions for question in questions
    ]
    for number, scene in enumerate(asked.scenes):
        written = Image.open(folder / "task" / rows[number * measure.QUESTIONS]["image"])
        assert written.tobytes() == scene.image.tobytes()


@needs_packages
def test_the_checkpoint_is_an_ordinary_one(folder):
    """It has the encoder, and a chat template that writes the prompt that the model was trained with."""
    model, processor = checkpoint.load(KEPT)
    loaded = AutoModelForImageTextToText.from_pretrained(folder / "checkpoint").eval()
    own = AutoProcessor.from_pretrained(folder / "checkpoint")
    content = [{"type": "image"}, {"type": "text", "text": "side is dark"}]
    prompt = own.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    image = measure.examination("held-out", 1, 3).scenes[0].image
    inputs = processor(images=image, text="<image> side is dark", return_tensors="pt")
    again = own(images=image, text=prompt, return_tensors="pt")
    assert torch.equal(again["input_ids"], inputs["input_ids"])
    assert torch.equal(again["pixel_values"], inputs["pixel_values"])
    with torch.no_grad():
        torch.testing.assert_close(loaded(**again).logits, model(**inputs).logits, rtol=0, atol=0)
