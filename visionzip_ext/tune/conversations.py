"""Conversations about images, of LLaVA's JSON or the `datasets` library. What is wrong is told with its place."""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from visionzip_ext.tune.errors import TuneError

PLACEHOLDER = "<image>"
"""Where an image stands in a question, whatever the model's own token for it is."""

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
# "<video>", "<|image_pad|>", "<image_1>", "<im_start>": each is a token of some model, and none of them is text.
_OTHER_PLACEHOLDER = re.compile(r"<\|?/?(?:image|img|im|video|audio|vision)(?:_\w+)?\|?>")

Message = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """A conversation with its images.

    Attributes:
        where: file and line, or row, for errors.
        messages: as chat templates take them: `role`, and `content` of images and texts.
        images: RGB.
    """

    where: str
    messages: Sequence[Message]
    images: Sequence[Image.Image]


@dataclass(frozen=True)
class _Record:
    """An `Example` whose images are not read yet; `sources` gives what `Image.open` takes for each."""

    where: str
    messages: Sequence[Message]
    sources: Callable[[], Sequence[Any]]


class Conversations(Dataset):
    """Those of a file or folder that are about images.

    Attributes:
        left_out: how many are not: from text alone nothing is learnt about visual tokens.
    """

    def __init__(self, records: Sequence[_Record], left_out: int = 0) -> None:
        """Take what `read` has checked."""
        self._records, self.left_out = records, left_out

    def __len__(self) -> int:
        """How many there are."""
        return len(self._records)

    def __getitem__(self, number: int) -> Example:
        """Raises TuneError for an image that is missing or cannot be decoded."""
        record = self._records[number]
        sources = record.sources()
        _check_count(record.where, record.messages, len(sources))
        return Example(record.where, record.messages, [_decoded(source, record.where) for source in sources])

    def check_images(self) -> None:
        """Raise TuneError for an image that is none, as far as its first bytes tell."""
        for record in self._records:
            for source in record.sources():
                with _opened(source, record.where):
                    pass

    def part(self, fraction: float, seed: int) -> Conversations:
        """A random part, at least one, in the order of the whole; the same for the same seed."""
        count = max(1, round(fraction * len(self)))
        chosen = sorted(random.Random(seed).sample(range(len(self)), count))
        return Conversations([self._records[number] for number in chosen], self.left_out)


def read(data: Path, images: Path | None) -> Conversations:
    """All conversations of `data`, checked; images are looked for, and decoded later.

    A record has `conversations`, each with `from` ("human", "gpt") and `value`, or `messages`, each with `role` and
    `content`; and `image`, a path, or `images`, several. `<image>` in a question says where an image goes.

    Args:
        data: a .json file (a list of records), a .jsonl file (a record a line), or a folder that `save_to_disk` of the
            `datasets` library wrote.
        images: the folder that paths of images begin in; without it, the one that the file is in.

    Raises:
        TuneError: the file, a record or an image is not as it should be; the message names file and line.
    """
    if not data.exists():
        raise TuneError(f"--data {data}: no such file or folder")
    if data.is_dir():
        records, left_out = _rows(data)
    else:
        records, left_out = _records(data, data.parent if images is None else images)
    if not records:
        raise TuneError(f"{data}: none of {left_out} conversations is about an image")
    return Conversations(records, left_out)


# ---- files -----------------------------------------------------------------------------------------------------------


def _records(path: Path, folder: Path) -> tuple[list[_Record], int]:
    """Those with images, and how many have none."""
    records, left_out = [], 0
    for line, fields in _objects(path):
        where = f"{path}:{line}"
        messages = _messages(fields, where)
        names = _image_names(fields, where)
        _check_count(where, messages, len(names))
        files = [folder / name for name in names]
        for file in files:
            if not file.is_file():
                raise TuneError(f"{where}: no such image: {file}")
        if files:
            records.append(_Record(where, messages, partial(list, files)))
        else:
            left_out += 1
    return records, left_out


def _objects(path: Path) -> Iterator[tuple[int, Any]]:
    """The file's records, and the line that each begins in."""
    try:
        text = path.read_text()
        if path.suffix == ".jsonl":
            for number, line in enumerate(text.splitlines(), 1):
                if line.strip():
                    yield number, _one_line(line, number)
        else:
            yield from _of_list(text)
    except UnicodeDecodeError as error:
        raise TuneError(f"{path}: not UTF-8 text: {error}") from None
    except json.JSONDecodeError as error:
        raise TuneError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None


def _one_line(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        error.lineno = number
        raise


def _of_list(text: str) -> Iterator[tuple[int, Any]]:
    """The elements of a JSON list one by one, which tells where each is, as `json.loads` does not."""
    decoder, line, counted = json.JSONDecoder(), 1, 0
    position = _expect("[", text, 0)
    while not text.startswith("]", position):
        line, counted = line + text.count("\n", counted, position), position
        value, position = decoder.raw_decode(text, position)
        yield line, value
        position = _space_after(text, position)
        if not text.startswith("]", position):
            position = _expect(",", text, position)


def _expect(character: str, text: str, position: int) -> int:
    """The position of what follows the character and white space."""
    position = _space_after(text, position)
    if not text.startswith(character, position):
        raise json.JSONDecodeError(f"expected a list of records, and there {character!r}", text, position)
    return _space_after(text, position + 1)


def _space_after(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _image_names(fields: Mapping[str, Any], where: str) -> list[str]:
    names = fields.get("image", fields.get("images"))
    names = [] if names is None else [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TuneError(f"{where}: image must be a path or a list of paths, got {names!r}")
    return names


# ---- folders of `datasets` -------------------------------------------------------------------------------------------


def _rows(folder: Path) -> tuple[list[_Record], int]:
    try:
        import datasets
    except ImportError as error:
        raise TuneError(
            f"--data {folder} is a folder, which the datasets library reads: {error}; install it with "
            "`pip install 'visionzip_ext[tune]'`"
        ) from None
    try:
        table: Any = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise TuneError(f"--data {folder}: not a folder that save_to_disk of datasets wrote: {error}") from None
    if isinstance(table, datasets.DatasetDict):
        if "train" not in table:
            raise TuneError(f'--data {folder}: expected a split "train", got {", ".join(table)}')
        table = table["train"]
    columns = [name for name in ("image", "images") if name in table.column_names]
    if not columns:
        raise TuneError(f"--data {folder}: expected a column image or images, got {', '.join(table.column_names)}")
    column = columns[0]
    # As bytes or paths: whether an image can be decoded is told with its row.
    encoded = datasets.Image(decode=False)
    table = table.cast_column(column, encoded if column == "image" else datasets.List(encoded))
    records: list[_Record] = []
    for number, fields in enumerate(table.remove_columns(column)):
        where = f"{folder}, row {number}"
        messages = _messages(fields, where)
        if _placeholders(messages):
            records.append(_Record(where, messages, partial(_cell, table, number, column)))
    return records, len(table) - len(records)


def _cell(table: Any, row: int, column: str) -> list[Any]:
    value = table[row][column]
    images = [] if value is None else value if isinstance(value, list) else [value]
    return [image["path"] if image["bytes"] is None else io.BytesIO(image["bytes"]) for image in images]


# ---- records ---------------------------------------------------------------------------------------------------------


def _messages(fields: Any, where: str) -> list[Message]:
    """The conversation of a record in the form that chat templates take.

    Raises TuneError unless questions and answers take turns, after a system message or none.
    """
    turns = fields.get("conversations", fields.get("messages")) if isinstance(fields, Mapping) else None
    if not isinstance(turns, list) or not turns:
        raise TuneError(f"{where}: expected a record with a list of turns under conversations or messages")
    messages = [_message(turn, where) for turn in turns]
    roles = [message["role"] for message in messages]
    if roles[0] == "system":
        roles = roles[1:]
    for number, role in enumerate(roles):
        if role != ("user", "assistant")[number % 2]:
            what = {"user": "a question after a question", "assistant": "an answer without a question"}
            raise TuneError(f"{where}: {what.get(role, 'a system message that is not the first')}")
    if len(roles) % 2 or not roles:
        raise TuneError(f"{where}: the conversation ends without an answer")
    if any(_placeholders([message]) for message in messages[2 + (messages[0]["role"] == "system") :]):
        raise TuneError(f"{where}: images must come before the first answer; one comes later")
    return messages


def _message(turn: Any, where: str) -> Message:
    said = turn.get("from", turn.get("role")) if isinstance(turn, Mapping) else None
    value = turn.get("value", turn.get("content")) if isinstance(turn, Mapping) else None
    if said not in _ROLES:
        raise TuneError(f"{where}: a turn is from {said!r}; expected one of {', '.join(_ROLES)}")
    role = _ROLES[said]
    content = _parts(value, where)
    if role == "assistant" and (len(content) != 1 or content[0]["type"] != "text"):
        raise TuneError(f"{where}: an answer must be text without {PLACEHOLDER}, got {value!r}")
    return {"role": role, "content": content}


def _parts(value: Any, where: str) -> list[dict[str, str]]:
    """A turn's text cut at placeholders, or its list of parts, as a list of images and texts."""
    if isinstance(value, list):
        kinds = [part.get("type") if isinstance(part, Mapping) else None for part in value]
        if not set(kinds) <= {"image", "text"}:
            raise TuneError(f"{where}: parts of a message must be of type image or text, got {kinds}")
        pieces = [PLACEHOLDER if kind == "image" else part.get("text") for kind, part in zip(kinds, value, strict=True)]
        if not all(isinstance(piece, str) for piece in pieces):
            raise TuneError(f"{where}: a part of type text has no text")
        value = "".join(pieces)
    if not isinstance(value, str) or not value.strip():
        raise TuneError(f"{where}: a turn must have text, got {value!r}")
    if unknown := [found for found in _OTHER_PLACEHOLDER.findall(value) if found != PLACEHOLDER]:
        raise TuneError(f"{where}: unknown placeholder {unknown[0]}; images are marked by {PLACEHOLDER}")
    content: list[dict[str, str]] = []
    for number, text in enumerate(value.split(PLACEHOLDER)):
        content += [{"type": "image"}] if number else []
        content += [{"type": "text", "text": text.strip()}] if text.strip() else []
    return content


def _placeholders(messages: Sequence[Message]) -> int:
    return sum(part["type"] == "image" for message in messages for part in message["content"])


def _check_count(where: str, messages: Sequence[Message], images: int) -> None:
    if (expected := _placeholders(messages)) != images:
        raise TuneError(f"{where}: the conversation has {expected} {PLACEHOLDER}, the record {images} images")


def _decoded(source: Any, where: str) -> Image.Image:
    with _opened(source, where) as image:
        return image.convert("RGB")


@contextlib.contextmanager
def _opened(source: Any, where: str) -> Iterator[Image.Image]:
    try:
        with Image.open(source) as image:
            yield image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        name = f" {source}" if isinstance(source, Path) else ""
        raise TuneError(f"{where}: broken image{name}: {error}") from None
