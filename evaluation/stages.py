"""The three stages in which the small LLaVA learns from nothing, and what each learns from.

A language model this small does not learn to read images and to answer at once: it stays at the most frequent answers.
So it first reads scenes in words (`WordScenes`); then the projector learns to say patches in these words
(`LabelledPatches`); then both learn from images (`AskedScenes`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import LlavaForConditionalGeneration

from evaluation.batches import sequences
from evaluation.checkpoint import IMAGE_TOKENS, PATCH, VOCABULARY
from evaluation.pictures import KIND_OF, MARKS, NAMES
from evaluation.questions import ask
from evaluation.scenes import PLACES, SIDES, SIZE, Scene

QUESTIONS = 14
"""About a scene in training: twice all topics."""

_SIDE = SIZE // PATCH


# ---- 1: scenes in words ----------------------------------------------------------------------------------------------


class WordScenes(Dataset):
    """Scenes without an image: tokens that are each a sum of three or four words, in any order and number."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, Any]:
        rng = random.Random(f"words/{self.seed}/{number}")
        scene = _word_scene(rng)
        return {"tokens": _tokens(scene, rng), "questions": ask(scene, QUESTIONS, rng)}


def collate_words(items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """As many tokens as the longest has; a shorter scene says some again."""
    length = max(len(item["tokens"]) for item in items)
    tokens = [[item["tokens"][i % len(item["tokens"])] for i in range(length)] for item in items]
    return {"words": torch.tensor(tokens), **sequences([item["questions"] for item in items], length)}


def _word_scene(rng: random.Random) -> Scene:
    places = rng.sample(range(9), 9)
    things = dict(zip(places, rng.sample(NAMES, rng.randint(2, 5)), strict=False))
    marks = dict(zip(places[len(things) :], rng.sample(sorted(MARKS), rng.randint(0, 2)), strict=False))
    return Scene(None, 0, things, marks, {}, rng.choice([*SIDES, "even"]))  # type: ignore[arg-type]


def _tokens(scene: Scene, rng: random.Random) -> list[list[int]]:
    """Each thing and mark one to four times; of the background, something of every place."""
    said = [place for place in (*scene.things, *scene.marks) for _ in range(rng.randint(1, 4))]
    background = [place for place in range(9) for _ in range(rng.randint(0, 2))] + [rng.randrange(9)]
    tokens = [patch_words(scene, place, True) for place in said]
    tokens += [patch_words(scene, place, False) for place in background]
    rng.shuffle(tokens)
    return tokens


def patch_words(scene: Scene, place: int, shows_picture: bool) -> list[int]:
    """The four words for a patch: what it shows, of what kind, where, and how light it is there."""
    name = scene.things.get(place) or scene.marks.get(place) if shows_picture else None
    kind = KIND_OF.get(name, "mark") if name else "nothing"
    light = "dark" if place in SIDES.get(scene.dark, ()) and not name else "even"
    return [VOCABULARY[word] for word in (name or "nothing", kind, PLACES[place], light)]


# ---- 2: patches in words ---------------------------------------------------------------------------------------------


class LabelledPatches(Dataset):
    """Patches' features, and the words that say what they show."""

    def __init__(self, scenes: Sequence[Scene], features: Tensor) -> None:
        self.scenes, self.features = scenes, features

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {"features": self.features[number].float(), "words": patch_labels(self.scenes[number])}


def patch_labels(scene: Scene) -> Tensor:
    """(IMAGE_TOKENS, 4) words: a patch shows a picture where at least its middle is in the box."""
    labels = []
    for patch in range(IMAGE_TOKENS):
        y, x = ((i + 0.5) * PATCH for i in divmod(patch, _SIDE))
        place = int(y * 3 / SIZE) * 3 + int(x * 3 / SIZE)
        left, top, side = scene.boxes.get(place, (0, 0, 0))
        labels.append(patch_words(scene, place, left <= x < left + side and top <= y < top + side))
    return torch.tensor(labels)


# ---- 3: questions about images ---------------------------------------------------------------------------------------


class AskedScenes(Dataset):
    """Patches' features and questions; other questions in each epoch."""

    def __init__(self, scenes: Sequence[Scene], features: Tensor, epochs: int, seed: int) -> None:
        self.scenes, self.features, self.epochs, self.seed = scenes, features, epochs, seed

    def __len__(self) -> int:
        return len(self.scenes) * self.epochs

    def __getitem__(self, number: int) -> dict[str, Any]:
        rng = random.Random(f"questions/{self.seed}/{number}")
        scene = number % len(self.scenes)
        return {"features": self.features[scene].float(), "questions": ask(self.scenes[scene], QUESTIONS, rng)}


def collate_features(items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Batches for `Learner`."""
    features = torch.stack([item["features"] for item in items])
    return {"features": features, **sequences([item["questions"] for item in items], features.shape[1])}


# ---- losses ----------------------------------------------------------------------------------------------------------


class Learner(nn.Module):
    """What Trainer trains: the parts of a LLaVA that learn, fed with words or with cached features.

    A module of its own, because Trainer restores a LLaVA from a checkpoint under names that it was not saved by, and
    because the encoder would be saved each time.
    """

    def __init__(self, llava: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.projector = llava.model.multi_modal_projector
        self.language_model = llava.model.language_model
        self._llava = (llava,)  # in a tuple: no part of this module

    def forward(
        self,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        features: Tensor | None = None,
        words: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`loss`: of answers; of patches (features) that are to be said in words, where there are no questions."""
        embeddings = self.language_model.get_input_embeddings()
        if input_ids is None:
            return {"loss": _alignment_loss(embeddings.weight.detach(), self.projector(features), words)}
        visual = self.projector(features) if words is None else _spoken(embeddings, words)
        inputs_embeds = embeddings(input_ids).clone()
        inputs_embeds[:, 1 : 1 + visual.shape[1]] = visual
        outputs = self._llava[0](
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            attention_mask=attention_mask,
            labels=labels,
            use_cache=False,
        )
        return {"loss": outputs.loss}


def _spoken(embeddings: nn.Module, words: Tensor) -> Tensor:
    """(B, n, 4) words -> (B, n, channels): their sum, and noise, as patches are never said exactly."""
    spoken = embeddings(words).sum(2)
    return spoken + 0.3 * spoken.detach().std() * torch.randn_like(spoken)


def _alignment_loss(table: Tensor, projected: Tensor, words: Tensor) -> Tensor:
    """A projected patch is to be the sum of its words' embeddings, and nearest to the right first one."""
    shows = words[..., 0] != VOCABULARY["nothing"]
    scale = table.pow(2).sum(1).mean()
    squares = (projected - table[words].sum(2)).pow(2).sum(-1) / scale
    names = torch.tensor([VOCABULARY[name] for name in (*NAMES, *sorted(MARKS), "nothing")])
    logits = (projected - table[words[..., 1:]].sum(2)) @ table[names].T / scale * 4
    number = torch.zeros(len(table), dtype=torch.long)
    number[names] = torch.arange(len(names))
    weight = torch.ones(len(names))
    weight[-1] = 0.1
    naming = nn.functional.cross_entropy(logits.flatten(0, 1), number[words[..., 0]].flatten(), weight=weight)
    return (squares * torch.where(shows, 1.0, 0.3)).mean() + 0.3 * naming
