"""Scenes and questions: the same every time, true of the image, and none in two splits."""

from __future__ import annotations

import random

import pytest
import torch
from support.evaluation import needs_packages

from evaluation import batches, checkpoint, questions, scenes, stages
from evaluation.questions import ask


@needs_packages
def test_scenes_are_the_same_whatever_their_number():
    some = scenes.split("train")
    few, more = list(some.scenes(3)), list(some.scenes(5))
    assert [scene.image.tobytes() for scene in few] == [scene.image.tobytes() for scene in more[:3]]
    assert len({scene.image.tobytes() for scene in more}) == 5
    assert next(scenes.split("train", seed=1).scenes(1)).image.tobytes() != few[0].image.tobytes()


@needs_packages
def test_nothing_is_judged_by_what_was_trained_on():
    trained, judged = (
        {image.tobytes() for image in scenes.split(name).photographs} for name in ("train", "validation")
    )
    assert len(trained) > 20
    assert len(judged) > 10
    assert not trained & judged
    ours, others = (scenes.split(name).pictograms for name in ("validation", "held-out"))
    assert ours.keys() == others.keys()
    assert all(ours[name].tobytes() != others[name].tobytes() for name in ours)


def test_an_unknown_split_is_named():
    with pytest.raises(
        ValueError, match='split is "test"; expected train, validation, held-out, single, crowd, touching'
    ):
        scenes.split("test")


@needs_packages
def test_a_scene_shows_what_it_says():
    """Pixels in a box differ from the scene without its pictures; one side is darker."""
    for scene in scenes.split("validation").scenes(10):
        assert scene.boxes.keys() == scene.things.keys() | scene.marks.keys()
        assert not scene.things.keys() & scene.marks.keys()
        for place, (x, y, side) in scene.boxes.items():
            row, column = divmod(place, 3)
            assert column * 56 <= x
            assert x + side <= (column + 1) * 56
            assert row * 56 <= y
            assert y + side <= (row + 1) * 56


@needs_packages
def test_layouts_are_what_they_say():
    single, crowd, touching = (list(scenes.split(name).scenes(10)) for name in ("single", "crowd", "touching"))
    assert all(len(scene.things) == 1 and max(scene.boxes.values())[2] == 54 for scene in single)
    assert all(6 <= len(scene.things) <= 8 for scene in crowd)
    for scene in touching:
        corners = {(x + side, y + side) for x, y, side in scene.boxes.values()}
        corners &= {(x, y) for x, y, _ in scene.boxes.values()}
        assert len(scene.things) == 4
        assert len(corners) == 1  # one ends where another begins
    rng = random.Random(0)
    for scene in (*single, *crowd, *touching):
        assert all(question.answer in questions.WORDS for question in ask(scene, 70, rng))


def _scene(**truth) -> scenes.Scene:
    return scenes.Scene(None, 0, **{"things": {}, "marks": {}, "boxes": {}, "dark": "even", **truth})


@pytest.mark.parametrize(
    ("topic", "answers"),
    [
        ("exist", {"dog": "yes", "cat": "yes", "bus": "yes", "pizza": "no", "key": "no"}),
        ("what", {"top-left": "dog", "middle-center": "cat", "bottom-right": "bus", "top-right": "nothing"}),
        ("kind", {"top-left": "animal", "bottom-right": "vehicle", "top-right": "nothing"}),
        ("where", {"dog": "top-left", "cat": "middle-center", "bus": "bottom-right"}),
        ("count", {"animal": "2", "vehicle": "1", "food": "0", "thing": "0"}),
        ("detail", {"top-right": "star", "top-left": "nothing", "bottom-right": "nothing"}),
        ("background", {"dark": "left"}),
    ],
)
def test_answers_are_true(topic, answers):
    scene = _scene(things={0: "dog", 4: "cat", 8: "bus"}, marks={2: "star"}, dark="left")
    asked = [question for question in ask(scene, 2800, random.Random(3)) if question.topic == topic]
    assert all(len(question.text.split()) == questions.LENGTH for question in asked)
    given = {question.text.split()[-1]: question.answer for question in asked}
    assert {about: given.get(about) for about in answers} == answers


def test_every_word_is_in_the_vocabulary_once():
    assert len(set(questions.WORDS)) == len(questions.WORDS)
    scene = _scene(things={0: "dog"})
    tokenizer = checkpoint.build_processor().tokenizer
    for question in ask(scene, 40, random.Random(0)):
        ids = tokenizer(f"{question.text} {question.answer}", add_special_tokens=False)["input_ids"]
        assert len(ids) == questions.LENGTH + 1
        assert tokenizer.decode(ids).split() == [*question.text.split(), question.answer]


def test_a_question_in_a_sequence_sees_the_image_and_itself():
    asked = ask(_scene(things={0: "dog"}), 3, random.Random(0))
    batch = batches.sequences([asked], visual_tokens=5)
    sees = batch["attention_mask"][0, 0] == 0
    start, step = 6, questions.LENGTH + 1
    second = range(start + step, start + 2 * step)
    for token in second:
        seen = set(torch.where(sees[token])[0].tolist())
        assert seen == {*range(start), *range(second.start, token + 1)}
    assert batch["position_ids"][0, second.start] == start
    answered = batch["labels"][0][batch["labels"][0] != -100]
    assert answered.tolist() == [checkpoint.VOCABULARY[question.answer] for question in asked]


def test_patches_are_said_as_what_they_show():
    scene = _scene(things={0: "dog"}, marks={4: "star"}, boxes={0: (0, 0, 28), 4: (63, 63, 28)}, dark="right")
    labels = stages.patch_labels(scene).view(12, 12, 4)
    word = checkpoint.VOCABULARY
    assert labels[0, 0].tolist() == [word["dog"], word["animal"], word["top-left"], word["even"]]
    assert labels[2, 2].tolist() == [word["nothing"], word["nothing"], word["top-left"], word["even"]]
    assert labels[5, 5].tolist() == [word["star"], word["mark"], word["middle-center"], word["even"]]
    assert labels[0, 11].tolist() == [word["nothing"], word["nothing"], word["top-right"], word["dark"]]
