"""The bench's scenes and its model as lmms-eval reads them: a task, and a checkpoint folder of transformers."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import LlavaForConditionalGeneration, LlavaProcessor

from evaluation.measure import Examination

TASK = "visionzip_scenes"

# A question without an image's tokens around it, as the model was trained.
_CHAT_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{{ '<image> ' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{% endfor %}"
)

_YAML = f"""\
task: {TASK}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {{data}}
test_split: test
output_type: generate_until
doc_to_visual: !function functions.images
doc_to_text: question
doc_to_target: answer
process_results: !function functions.score
generation_kwargs:
  max_new_tokens: 1
metric_list:
  - metric: accuracy
    aggregation: mean
    higher_is_better: true
metadata:
  version: 0
"""

_FUNCTIONS = '''\
"""What the task's YAML names."""

from pathlib import Path

from PIL import Image


def images(doc):
    return [Image.open(Path(__file__).parent / doc["image"]).convert("RGB")]


def score(doc, results):
    return {"accuracy": float(results[0].strip() == doc["answer"])}
'''


def write(folder: Path, asked: Examination, model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    """`folder/task` for `--include_path`, and `folder/checkpoint` for `pretrained=`, with the encoder.

    Questions are in the order of the examination: scene by scene.
    """
    _write_task(folder / "task", asked)
    processor.chat_template = _CHAT_TEMPLATE
    model.save_pretrained(folder / "checkpoint")
    processor.save_pretrained(folder / "checkpoint")


def _write_task(folder: Path, asked: Examination) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (scene, questions) in enumerate(zip(asked.scenes, asked.questions, strict=True)):
        image = f"images/{number:05}.png"
        scene.image.save(folder / image)
        lines += [
            json.dumps({"image": image, "topic": own.topic, "question": own.text, "answer": own.answer})
            for own in questions
        ]
    data = folder / "scenes.jsonl"
    data.write_text("\n".join(lines) + "\n")
    (folder / "functions.py").write_text(_FUNCTIONS)
    (folder / f"{TASK}.yaml").write_text(_YAML.format(data=json.dumps(str(data.resolve()))))
