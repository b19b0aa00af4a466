"""Random problems for the operators on packed images, and what they must compute: each image by itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from support import oracle
from support.inputs import F32, Call, OperatorCall, Shape, normal, random_assignment
from torch import Tensor

DECIDING_PACKED = ("select_packed",)
ZIPPING_PACKED = ("zip_packed",)
CARRYING_PACKED = ("merge_packed", "merge_packed_backward")
PACKED_OPS = DECIDING_PACKED + ZIPPING_PACKED + CARRYING_PACKED
SOURCES = ("queries", "lse", "scores")  # lse: queries, and the log-sum-exp of their rows
POSITIONAL = {
    "zip_packed": ("hidden", "keys", "cu_seqlens"),
    "select_packed": ("keys", "cu_seqlens"),
    "merge_packed": ("x", "assignment", "cu_seqlens"),
    "merge_packed_backward": ("grad", "assignment", "cu_seqlens"),
}


@dataclass(frozen=True)
class Mix:
    """Images of these lengths, with these budgets; C, H and D as in `inputs.Shape`."""

    lengths: tuple[int, ...]
    k: tuple[int, ...]
    m: tuple[int, ...]
    C: int = 20
    H: int = 3
    D: int = 16
    group: int = 1
    has_cls: bool = False
    policy: str = "attention"
    keep_cls: bool = True

    def __str__(self) -> str:
        lengths = "-".join(map(str, self.lengths)) if len(self.lengths) < 8 else f"{len(self.lengths)}images"
        cls = "" if not self.has_cls else "-cls" if self.keep_cls else "-dropcls"
        policy = "" if self.policy == "attention" else f"-{self.policy}"
        return f"{lengths or 'none'}-g{self.group}-H{self.H}-D{self.D}-C{self.C}{cls}{policy}"

    @property
    def T(self) -> int:
        """Tokens of all images."""
        return sum(self.lengths)

    @property
    def rows(self) -> int:
        """Output rows of all images."""
        return sum(self.k) + sum(self.m)


EVERY_LENGTH = tuple(range(0, 99, 4))

MIXES = (
    Mix((41, 7, 130, 12), (7, 3, 17, 4), (5, 2, 8, 0)),
    Mix((41, 7, 130, 12), (7, 3, 17, 4), (5, 2, 8, 0), has_cls=True),
    Mix((64,), (10,), (6,), H=2, D=33),
    Mix((12, 0, 33, 0), (3, 0, 33, 0), (4, 0, 0, 0)),  # empty images; one that is kept whole
    Mix((9, 20, 9), (0, 0, 3), (3, 0, 6)),  # nothing kept; an image dropped; all of the rest targets
    Mix((1200, 30, 30, 30), (100, 5, 5, 5), (20, 3, 3, 3), H=2, D=24),  # one image forty times another
    Mix((1, 1, 2), (1, 0, 1), (0, 1, 1), H=1, D=4, C=5),
    Mix((41, 7, 30), (7, 3, 9), (5, 2, 4), group=4),
    Mix((40, 0, 11, 500), (7, 0, 3, 54), (5, 0, 2, 10), group=3, H=2, D=40, C=33),
    Mix(EVERY_LENGTH, tuple(S // 2 for S in EVERY_LENGTH), tuple(S // 7 for S in EVERY_LENGTH), H=2, D=8, C=8),
    Mix((90, 80), (1, 70), (1, 5), H=1, D=8),  # few rows of the longest, most of another
    Mix((), (), ()),
    Mix((0,), (0,), (0,)),
    Mix((30, 30), (5, 6), (4, 3), C=0),
)


@dataclass(frozen=True)
class PackedCall(OperatorCall):
    """A call of an operator on packed images."""

    k: list[int]
    m: list[int]
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword-only arguments that are no tensors."""

    @property
    def args(self) -> tuple[Any, ...]:
        """The positional arguments."""
        return (*(self.tensors[name] for name in POSITIONAL[self.op]), self.k, self.m)

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword-only arguments."""
        return {name: x for name, x in self.tensors.items() if name not in POSITIONAL[self.op]} | self.options

    @property
    def group(self) -> int:
        """Cells to a token."""
        return self.options.get("group", 1)

    @property
    def starts(self) -> list[int]:
        """The values of cu_seqlens."""
        return self.tensors["cu_seqlens"].tolist()

    @property
    def row_starts(self) -> list[int]:
        """The cu_seqlens of the rows."""
        return list(accumulate(map(sum, zip(self.k, self.m, strict=True)), initial=0))


def cu_seqlens_of(lengths: tuple[int, ...]) -> Tensor:
    """Where images of these lengths begin."""
    return torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32)


def random_packed_assignment(rng: torch.Generator, mix: Mix) -> Tensor:
    """A random decision (T,)."""
    parts, row = [torch.empty(0, dtype=torch.int64)], 0
    for S, k, m in zip(mix.lengths, mix.k, mix.m, strict=True):
        own = torch.full((S,), -1)
        if k + m:
            shape = Shape(B=1, S=S, C=1, H=1, D=1, k=k, m=m, has_cls=mix.has_cls, keep_cls=mix.keep_cls)
            own = random_assignment(rng, shape)[0]
        parts.append(torch.where(own < 0, -1, own + row))
        row += k + m
    return torch.cat(parts)


def random_packed_call(
    op: str,
    rng: torch.Generator,
    mix: Mix,
    dtypes: tuple[torch.dtype, torch.dtype] = (F32, F32),
    *,
    merge: str = "residual",
    source: str = "queries",
    bounded: bool = True,
) -> PackedCall:
    """A call of `op` with random inputs; `dtypes` are those of hidden (or x, or grad) and of all that decides.

    source: one of SOURCES, for an operator that decides; bounded: which is then told the longest image's length.
    """
    of_hidden, of_keys = dtypes
    tensors: dict[str, Tensor] = {}
    options: dict[str, Any] = {}
    cells = mix.T * mix.group
    if op in CARRYING_PACKED:
        name, rows = ("x", mix.T) if op == "merge_packed" else ("grad", mix.rows)
        tensors = {name: normal(rng, rows, mix.C, dtype=of_hidden), "assignment": random_packed_assignment(rng, mix)}
        options["merge"] = merge
    else:
        if op == "zip_packed":
            tensors["hidden"] = normal(rng, mix.T, mix.C, dtype=of_hidden)
            options["merge"] = merge
        tensors["keys"] = normal(rng, cells, mix.H, mix.D, dtype=of_keys)
        options |= {"has_cls": mix.has_cls, "policy": mix.policy, "keep_cls": mix.keep_cls, "group": mix.group}
        if bounded:
            options["max_seqlen"] = max(mix.lengths, default=0)
        if source != "scores":
            tensors["queries"] = normal(rng, cells, mix.H, mix.D, dtype=of_keys)
            options["scale"] = max(mix.D, 1) ** -0.5
        else:
            tensors["scores"] = torch.rand(cells, generator=rng).to(of_keys)
    tensors["cu_seqlens"] = cu_seqlens_of(mix.lengths)
    call = PackedCall(op, tensors, list(mix.k), list(mix.m), options)
    return call.with_tensors(lse=_lse(call)) if source == "lse" and "queries" in tensors else call


def _lse(call: PackedCall) -> Tensor:
    """(H, cells) float32."""
    queries, keys = (call.tensors[name].float().transpose(0, 1) for name in ("queries", "keys"))
    out = torch.empty(queries.shape[:2])
    for start, stop in zip(call.starts[:-1], call.starts[1:], strict=True):
        own = slice(start * call.group, stop * call.group)
        out[:, own] = (queries[:, own] @ keys[:, own].mT * call.options["scale"]).logsumexp(-1)
    return out


BATCHED = {
    "zip_packed": {"queries": "zip_qk", "scores": "zip"},
    "select_packed": {"queries": "select_qk", "scores": "select"},
    "merge_packed": {None: "merge"},
    "merge_packed_backward": {None: "merge_backward"},
}


def image(call: PackedCall, i: int) -> Call:
    """Image i as a batch of one, for the operator on batches. Of grouped cells: the decision between cells."""
    tokens, rows = slice(*call.starts[i : i + 2]), slice(*call.row_starts[i : i + 2])
    cells = slice(tokens.start * call.group, tokens.stop * call.group)
    tensors = {}
    for name, x in call.tensors.items():
        if name in ("hidden", "x"):
            tensors[name] = x[tokens].unsqueeze(0)
        elif name == "grad":
            tensors[name] = x[rows].unsqueeze(0)
        elif name == "assignment":
            tensors[name] = own_rows(x[tokens], rows.start).unsqueeze(0)
        elif name in ("queries", "keys"):
            tensors[name] = (x[cells].transpose(0, 1) if x.ndim == 3 else x[cells]).unsqueeze(0)
        elif name == "scores":
            tensors["attn"] = x[cells].unsqueeze(0)
        elif name == "lse":
            tensors[name] = x[:, cells].unsqueeze(0)
    order = [
        name for name in ("hidden", "queries", "keys", "attn", "x", "grad", "assignment", "lse") if name in tensors
    ]
    source = next((name for name in ("queries", "scores") if name in call.tensors), None)
    options = {name: x for name, x in call.options.items() if name not in ("group", "max_seqlen")}
    ordered = {name: tensors[name] for name in order}
    return Call(BATCHED[call.op][source], ordered, call.k[i], call.m[i], options)


def own_rows(assignment: Tensor, first_row: int) -> Tensor:
    """Rows counted from an image's own first."""
    return torch.where(assignment < 0, -1, assignment - first_row)


def of_image(call: PackedCall, i: int, results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Image i's part of a call's results, as the operator on batches returns it."""
    start, stop = call.starts[i : i + 2]
    rows = slice(*call.row_starts[i : i + 2])
    if call.op == "merge_packed":
        return (results[0][rows].unsqueeze(0),)
    if call.op == "merge_packed_backward":
        return (results[0][start:stop].unsqueeze(0),)
    *tokens, indices, assignment, _ = results
    first = sum(call.k[:i])
    return (
        *(x[rows].unsqueeze(0) for x in tokens),
        indices[first : first + call.k[i]].unsqueeze(0) - start,
        own_rows(assignment[start:stop], rows.start).unsqueeze(0),
    )


def check(call: PackedCall, results: tuple[Tensor, ...]) -> None:
    """Everything that a call's results must be."""
    T, rows = call.starts[-1], call.row_starts
    sizes = {"merge_packed": [rows[-1]], "merge_packed_backward": [T]}
    sizes |= {"select_packed": [sum(call.k), T, len(rows)], "zip_packed": [rows[-1], sum(call.k), T, len(rows)]}
    assert [len(x) for x in results] == sizes[call.op]
    if call.op not in CARRYING_PACKED:
        assert results[-1].dtype == torch.int32
        assert results[-1].tolist() == rows
    for i in range(len(call.k)):
        own = of_image(call, i, results)
        if call.k[i] + call.m[i] == 0:
            nothing = 0 if call.op == "merge_packed_backward" else -1
            assert (own[-1] == nothing).all() or call.op == "merge_packed"
        elif call.group == 1:
            oracle.check(image(call, i), own)
        else:
            _check_grouped(call, i, own)


def _check_grouped(call: PackedCall, i: int, results: tuple[Tensor, ...]) -> None:
    """Scores of cells add up; a token's cells are to its key what heads are."""
    single, group = image(call, i), call.group
    of_cells = oracle.score(single)
    value, slack = (x.unflatten(1, (-1, group)) for x in (of_cells.value, of_cells.slack))
    scores = oracle.Estimate(value.sum(-1), slack.sum(-1) + group * oracle.U32 * value.abs().sum(-1))
    *tokens, indices, assignment = results
    keys = single.tensors["keys"] if single.tensors["keys"].ndim == 4 else single.tensors["keys"].unsqueeze(1)
    keys = keys.unflatten(2, (-1, group)).movedim(3, 1).flatten(1, 2)
    oracle.check_choice(indices, scores, keys, single)
    oracle.check_assignment(assignment, indices, keys, single.k, single.m)
    for x in tokens:
        merge = call.options["merge"]
        oracle.check_merge(x, single.tensors["hidden"], assignment, single.k, single.m, merge)
