"""3D positions (time, row, column) of the visual tokens that are left, as they are in the full grid.

Which tokens are left is known once the encoder has run; `generate` asks for positions before. What is known by then is
where in the text an image begins, and its time: every temporal patch has a budget of its own. So `get_rope_index`
answers with *tickets* for visual tokens: the time; a number below zero, which says the how manieth visual token it is;
and the image's first row, which is its first column too. Tickets travel as positions do: through beams, chunks, caches
and data loaders. A forward pre-hook of the language model puts in row and column by what the encoder decided. Positions
of another origin have no number below zero and stay as they are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visionzip_ext.tokens.packed_images import PackedFrame

MODALITIES = ("image", "video")


class KeptPlaces:
    """Where in their grids the visual tokens of the latest features stand, in each thread; copies begin with none."""

    def __init__(self) -> None:
        """Of nothing yet."""
        self._of_thread = threading.local()

    def __reduce__(self) -> tuple[Callable, tuple]:
        """Nothing, in a copy."""
        return KeptPlaces, ()

    def note(self, modality: str, places: Tensor) -> None:
        """Features were made.

        Args:
            modality: "image" or "video".
            places: (N, 2) int64: row and column of each visual token, in the full grid.
        """
        setattr(self._of_thread, modality, places)

    def note_precomputed(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the base model: features that were made earlier are used now."""
        for modality, outputs in (kwargs.get("mm_encoder_outputs") or {}).items():
            if (places := getattr(outputs, PLACES, None)) is not None:
                self.note(modality, places)

    def redeem(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """Forward pre-hook of the language model: tickets among `position_ids` become positions."""
        position_ids = kwargs.get("position_ids")
        if position_ids is None or position_ids.ndim != 3 or len(position_ids) < 3:  # of text alone
            return None
        time, ticket, start = position_ids[-3:]
        resolved = [time, ticket, start]
        for number, modality in enumerate(MODALITIES):
            mine = (ticket < 0) & ((-1 - ticket) % 2 == number)
            places = getattr(self._of_thread, modality, None)
            if places is None or len(places) == 0:
                # A compiled language model has this hook in its graph, which cannot branch on values.
                if not torch.compiler.is_compiling() and mine.any():
                    raise RuntimeError(
                        f"position_ids are of a prompt with {modality}s, of which this thread made no features: pass "
                        f"the {modality}s' pixel values too, or call the model's get_{modality}_features first"
                    )
                continue
            row, column = places.to(ticket.device)[torch.where(mine, (-1 - ticket) // 2, 0)].unbind(-1)
            resolved[1] = torch.where(mine, start + row, resolved[1])
            resolved[2] = torch.where(mine, start + column, resolved[2])
        return args, kwargs | {"position_ids": torch.cat([position_ids[:-3], torch.stack(resolved)])}


PLACES = "visionzip_places"
"""The attribute of an encoder's output (transformers 5) that holds its `places`."""


@dataclass
class _Visual:
    """The images, or videos, of a batch, taken one after another as their placeholders come.

    Attributes:
        name: "image" or "video".
        grids: (n, 3).
        frames: of each of the n.
        token: the placeholder's id.
    """

    name: str
    grids: Tensor
    frames: list[list[PackedFrame]]
    token: int
    seen: int = 0
    rows: int = 0

    def take(self, placeholders: int) -> tuple[slice, list[PackedFrame]]:
        """The next ones, that have so many placeholders together: which they are, and their frames."""
        first, taken, left = self.seen, [], placeholders
        while left > 0 and self.seen < len(self.frames):
            taken += self.frames[self.seen]
            left -= sum(frame.budget.tokens for frame in self.frames[self.seen])
            self.seen += 1
        if left != 0:
            raise ValueError(
                f"input_ids have {placeholders} {self.name} placeholders in a row, which {self.name}_grid_thw "
                f"{self.grids.tolist()} do not make; use the processor that was given to compress, with this setting"
            )
        return slice(first, self.seen), taken


def compact_rope_index(
    full_rope_index: Callable[..., tuple[Tensor, Tensor]],
    arguments: dict[str, Any],
    visuals: list[tuple[str, Tensor, list[list[PackedFrame]], int]],
) -> tuple[Tensor, Tensor]:
    """What `get_rope_index` answers for prompts with fewer placeholders than images have tokens.

    Args:
        full_rope_index: the model's own.
        arguments: those of the call, by name.
        visuals: of images and of videos: the modality, its grids, the frames of each, the placeholder's id.

    Returns:
        ((3, B, L), with tickets; (B, 1): what the position of a later token has over its number in the prompt).

    Raises:
        ValueError: there are other placeholders than those of the grids.
    """
    batch = [_Visual(*visual) for visual in visuals]
    ids = arguments["input_ids"]
    answers = [_of_prompt(full_rope_index, arguments, row, batch) for row in range(len(ids))]
    positions, deltas = zip(*answers, strict=True)
    return torch.cat(positions, 1).to(ids.device), torch.cat(deltas).to(ids.device)


def _of_prompt(
    full_rope_index: Callable[..., tuple[Tensor, Tensor]], arguments: dict[str, Any], row: int, batch: list[_Visual]
) -> tuple[Tensor, Tensor]:
    """One prompt's (3, 1, L) and (1, 1)."""
    ids = arguments["input_ids"][row].cpu()
    repeats = torch.ones_like(ids)
    own: dict[str, Any] = {}
    tickets: list[tuple[Tensor, Tensor, Tensor]] = []
    for visual in batch:
        where = (ids == visual.token).nonzero().flatten()
        taken, frames = visual.take(len(where))
        own[f"{visual.name}_grid_thw"] = visual.grids[taken].cpu() if frames else None
        seconds = arguments.get("second_per_grid_ts")
        if visual.name == "video" and seconds is not None:
            own["second_per_grid_ts"] = seconds[taken] if frames else None
        counts = torch.tensor([frame.budget.tokens for frame in frames], dtype=torch.int64)
        missing = torch.tensor([frame.tokens for frame in frames], dtype=torch.int64) - counts
        ends = counts.cumsum(0)
        repeats[where[ends - 1]] += missing
        firsts = where[ends - counts].repeat_interleave(counts)
        numbers = torch.arange(visual.rows, visual.rows + len(where))
        tickets.append((where, firsts, -1 - 2 * numbers - MODALITIES.index(visual.name)))
        visual.rows += len(where)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if (values := arguments.get(name)) is not None:
            own[name] = values[row].cpu().repeat_interleave(repeats)[None]
    positions, delta = full_rope_index(**(arguments | own))
    positions = positions[..., repeats.cumsum(0) - repeats].clone()
    starts = positions[1, 0].clone()
    for where, firsts, numbers in tickets:
        positions[2, 0, where] = starts[firsts]
        positions[1, 0, where] = numbers.to(positions.dtype)
    return positions, delta + int(repeats.sum()) - len(ids)
