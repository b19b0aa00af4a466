"""Images of any size, packed, whose encoder joins patches to tokens: their budgets, and what is left of them.

How many tokens an image becomes depends on its grid alone, so that a processor can count them before anything is
encoded. Both sides, the model's and the processor's, ask the same `PackedImages`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from visionzip_ext.packed import merge_packed, select_packed
from visionzip_ext.tokens.budget import Budget, Rule, Share, TileBudget
from visionzip_ext.tokens.decision import ZipDecision


class PackedFrame(NamedTuple):
    """An image, or a temporal patch of a video: what attention sees at a time.

    Attributes:
        grid: (rows, columns) of tokens.
        budget: what it is to become.
    """

    grid: tuple[int, int]
    budget: TileBudget

    @property
    def tokens(self) -> int:
        """How many it has: its visual tokens without compression."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class PackedImages:
    """The budgets of images and videos. Plain data: processors carry it along.

    Attributes:
        budget: of each image, or of each temporal patch of a video.
        merge_size: patches along a side of a token.
    """

    budget: Budget | Share
    merge_size: int

    def frames(self, grids: Iterable[Iterable[int]]) -> list[PackedFrame]:
        """Of images and videos whose grids of patches are (temporal patches, rows, columns).

        Raises:
            ValueError: a fixed budget is above an image's tokens.
        """
        found = []
        for grid in grids:
            temporal, rows, columns = (int(number) for number in grid)
            in_tokens = rows // self.merge_size, columns // self.merge_size
            budgets = self.budget.of_tiles(temporal, in_tokens[0] * in_tokens[1])
            self._check(in_tokens, temporal)
            found += [PackedFrame(in_tokens, budget) for budget in budgets]
        return found

    def _check(self, grid: tuple[int, int], temporal: int) -> None:
        if isinstance(self.budget, Share):
            return
        tokens = grid[0] * grid[1] * (temporal if self.budget.per == "image" else 1)
        if self.budget.tokens > tokens:
            raise ValueError(
                f"dominant={self.budget.dominant} and contextual={self.budget.contextual} ask for {self.budget.tokens} "
                f"tokens of an image, but one of {grid[0]} x {grid[1]} tokens has {tokens}; lower them, let the "
                "processor make larger images (min_pixels), or call compress with keep=, a share of each image's tokens"
            )


@dataclass(frozen=True)
class FramesDecision:
    """What becomes of packed frames; their rows stand in raster order, a merged one where its target is.

    Attributes:
        places: (N, 2) int64: row and column, in its frame's grid, of the token that each row stands for.
        decisions: one for all frames where their grids and budgets are the same, otherwise one for each.
    """

    places: Tensor
    decisions: list[ZipDecision]
    _assignment: Tensor
    _starts: Tensor
    _budgets: tuple[list[int], list[int]]
    _order: Tensor
    _merge: str

    @property
    def decision(self) -> ZipDecision | list[ZipDecision]:
        """What `last_zip` returns."""
        return self.decisions[0] if len(self.decisions) == 1 else self.decisions

    def apply(self, x: Tensor) -> Tensor:
        """Zip a tensor that has a row for each token: (tokens, *) -> (N, *), frame after frame."""
        return merge_packed(x, self._assignment, self._starts, *self._budgets, merge=self._merge)[self._order]


def decide_frames(
    queries: Tensor, keys: Tensor, scale: float, frames: list[PackedFrame], group: int, rule: Rule
) -> FramesDecision:
    """Decide what each frame becomes, by the attention that its tokens receive from its own patches.

    Args:
        queries: (group * tokens, H, D) of all frames, in the order of the tokens.
        keys: likewise.
        scale: the attention's factor on Q K^T.
        frames: what the rows are of.
        group: patches of a token.
        rule: by which tokens are kept and merged.
    """
    lengths = [frame.tokens for frame in frames]
    budgets = [frame.budget.dominant for frame in frames], [frame.budget.contextual for frame in frames]
    starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=keys.device)
    result = select_packed(
        keys,
        starts,
        *budgets,
        queries=queries,
        scale=scale,
        max_seqlen=max(lengths),
        group=group,
        policy=rule.policy,
    )
    tokens = row_tokens(result.indices, lengths, *budgets)
    order = tokens.argsort()
    return FramesDecision(
        _places(tokens[order], frames),
        _decisions(result.indices, result.assignment, frames),
        result.assignment,
        starts,
        budgets,
        order,
        rule.merge,
    )


def row_tokens(indices: Tensor, lengths: list[int], k: list[int], m: list[int]) -> Tensor:
    """The token that each row of `zip_packed` stands for: the kept token, or the one that others were merged into.

    Args:
        indices: (sum of k,) int64: the tokens kept, as numbers among all tokens.
        lengths: the tokens of each frame.
        k: dominant tokens of each.
        m: contextual tokens of each: of the tokens not kept every step-th is a target (Algorithm 2 of the paper).

    Returns:
        (sum of k + m,) int64, as numbers among all tokens.
    """
    total = sum(lengths)
    frame = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(indices.device)
    kept = torch.zeros(total, dtype=torch.int64, device=indices.device).scatter_(0, indices, 1)
    # Of each frame the tokens that were not kept come first, then those that were, both ascending.
    sorted_cells = (2 * frame + kept).argsort(stable=True)
    wanted: list[int] = []
    for start, length, kept_here, merged in zip(accumulate(lengths, initial=0), lengths, k, m, strict=False):
        rest = length - kept_here
        step = max(1, rest // max(1, merged))
        wanted += range(start + rest, start + length)
        wanted += range(start, start + merged * step, step)
    return sorted_cells[torch.tensor(wanted, dtype=torch.int64, device=indices.device)]


def _places(tokens: Tensor, frames: list[PackedFrame]) -> Tensor:
    """(N, 2): row and column of tokens, given as numbers among all tokens of all frames, frame after frame."""
    rows = torch.tensor([frame.budget.tokens for frame in frames])
    starts = torch.tensor([0, *accumulate(frame.tokens for frame in frames)][:-1]).repeat_interleave(rows)
    columns = torch.tensor([frame.grid[1] for frame in frames]).repeat_interleave(rows).to(tokens.device)
    own = tokens - starts.to(tokens.device)
    return torch.stack([own // columns, own % columns], 1)


def _decisions(indices: Tensor, assignment: Tensor, frames: list[PackedFrame]) -> list[ZipDecision]:
    """The decisions of the frames; one, stacked, where they are all alike."""
    decisions, token, row = [], 0, 0
    all_kept = indices.split([frame.budget.dominant for frame in frames])
    all_rows = assignment.split([frame.tokens for frame in frames])
    for frame, kept, rows in zip(frames, all_kept, all_rows, strict=True):
        own = torch.where(rows < 0, -1, rows - row)
        decisions.append(ZipDecision((kept - token)[None], own[None], frame.grid, False, *frame.budget))
        token, row = token + frame.tokens, row + frame.budget.tokens
    if len(set(frames)) > 1:
        return decisions
    all_indices = torch.cat([one.indices for one in decisions])
    all_assigned = torch.cat([one.assignment for one in decisions])
    return [ZipDecision(all_indices, all_assigned, frames[0].grid, False, *frames[0].budget)]
