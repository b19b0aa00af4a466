"""Questions with one right answer, of three words each, whose last one says what is asked for."""

from __future__ import annotations

import random
from dataclasses import dataclass

from evaluation.pictures import KIND_OF, KINDS, MARKS, NAMES
from evaluation.scenes import PLACES, SIDES, Scene

LENGTH = 3
TOPICS = ("exist", "what", "kind", "where", "count", "detail", "background")


@dataclass(frozen=True)
class Question:
    """`topic` is one of `TOPICS`; text and answer are words of the vocabulary."""

    topic: str
    text: str
    answer: str


def ask(scene: Scene, count: int, rng: random.Random) -> list[Question]:
    """`count` questions about a scene, of all topics in turn."""
    first = rng.randrange(len(TOPICS))
    return [_ASK[TOPICS[(first + i) % len(TOPICS)]](scene, rng) for i in range(count)]


def _exist(scene: Scene, rng: random.Random) -> Question:
    present = list(scene.things.values())
    yes = rng.random() < 0.5
    name = rng.choice(present if yes else [name for name in NAMES if name not in present])
    return Question("exist", f"is there {name}", "yes" if yes else "no")


def _what(scene: Scene, rng: random.Random) -> Question:
    place = _place(scene.things, rng)
    return Question("what", f"what at {PLACES[place]}", scene.things.get(place, "nothing"))


def _kind(scene: Scene, rng: random.Random) -> Question:
    place = _place(scene.things, rng)
    return Question("kind", f"which at {PLACES[place]}", KIND_OF.get(scene.things.get(place, ""), "nothing"))


def _where(scene: Scene, rng: random.Random) -> Question:
    place = rng.choice(list(scene.things))
    return Question("where", f"where is {scene.things[place]}", PLACES[place])


def _count(scene: Scene, rng: random.Random) -> Question:
    kind = rng.choice(list(KINDS))
    return Question("count", f"how many {kind}", str(sum(KIND_OF[name] == kind for name in scene.things.values())))


def _detail(scene: Scene, rng: random.Random) -> Question:
    place = _place(scene.marks, rng)
    return Question("detail", f"mark at {PLACES[place]}", scene.marks.get(place, "nothing"))


def _background(scene: Scene, rng: random.Random) -> Question:
    return Question("background", "side is dark", scene.dark)


def _place(there: dict[int, str], rng: random.Random) -> int:
    """Mostly one where something is."""
    return rng.choice(list(there)) if there and rng.random() < 0.85 else rng.randrange(len(PLACES))


_ASK = {
    "exist": _exist,
    "what": _what,
    "kind": _kind,
    "where": _where,
    "count": _count,
    "detail": _detail,
    "background": _background,
}

WORDS = (
    *("is", "there", "what", "at", "which", "where", "how", "many", "mark", "side", "dark"),
    *("yes", "no", "nothing", "even", "0", "1", "2", "3", "4", "5"),
    *SIDES,
    *PLACES,
    *KINDS,
    *NAMES,
    *sorted(MARKS),
)
"""All words of questions and answers."""
