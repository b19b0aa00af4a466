"""Who does the work that is timed: this library, the released implementation's recipe in PyTorch, and a copy.

A provider is prepared for a case's inputs, which may compile or record a CUDA graph, and gives the call that is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.cases import Case, Inputs, packed_images

Function = Callable[[Case, Inputs], Tensor]
"""Computes a case's tokens (B, k + m, C) from its inputs."""

Call = Callable[[], Tensor]

Provider = Callable[[Case, Inputs], Call]
"""Makes the call that computes a case's tokens from these inputs, which stay where they are."""


def ours(case: Case, inputs: Inputs) -> Tensor:
    """This library's operator."""
    ops, options = torch.ops.visionzip, {"has_cls": case.has_cls, "merge": case.merge}
    if case.op == "zip_packed":
        tensors = [inputs[name] for name in ("hidden", "keys", "cu_seqlens")]
        options |= {"queries": inputs["queries"], "scale": case.scale, "lse": inputs.get("lse")}
        return ops.zip_packed(*tensors, *case.budgets, group=case.group, max_seqlen=case.S, **options)[0]
    if case.op == "merge":
        return ops.merge(inputs["hidden"], inputs["assignment"], case.k, case.m, merge=case.merge)
    if case.op == "zip_qk":
        hidden, queries, keys = inputs["hidden"], inputs["queries"], inputs["keys"]
        options |= {"scale": case.scale, "lse": inputs.get("lse")}
        return ops.zip_qk(hidden, queries, keys, case.k, case.m, **options)[0]
    return ops.zip(inputs["hidden"], inputs["keys"], inputs["attn"], case.k, case.m, **options)[0]


def recipe(case: Case, inputs: Inputs) -> Tensor:
    """The released implementation's steps, eager, in the inputs' dtype.

    Where only queries and keys are given, it computes from them the attention that it needs: CLS's rows, or all. Where
    the decision is given, it does what is left of its steps.
    """
    hidden = inputs["hidden"]
    if case.op == "merge":
        return _apply_decision(hidden, inputs["assignment"], case.k, case.m)
    if case.op == "zip_packed":
        return torch.cat([recipe(*image)[0] for image in packed_images(case, inputs)])
    return _compress(hidden, _of_tokens(inputs["keys"].mean(1), case), _kept(case, inputs), case.k, case.m)


def _of_tokens(x: Tensor, case: Case) -> Tensor:
    """The mean over each token's cells: x (B, group * S, *)."""
    return x.unflatten(1, (case.S, case.group)).mean(2) if case.group > 1 else x


def _kept(case: Case, inputs: Inputs) -> Tensor:
    """The tokens (B, k) with the largest scores, CLS before them where there is one."""
    if case.op == "zip":
        attn = inputs["attn"]
    else:
        queries = inputs["queries"][:, :, :1] if case.has_cls else inputs["queries"]
        attn = ((queries * case.scale) @ inputs["keys"].transpose(2, 3)).softmax(-1)
    if not case.has_cls:
        return _of_tokens(attn.mean((1, 2)), case).topk(case.k, dim=1).indices
    kept = attn[:, :, 0, 1:].sum(1).topk(case.k - 1, dim=1).indices + 1
    return torch.cat([kept.new_zeros(case.B, 1), kept], 1)


def _compress(hidden: Tensor, metric: Tensor, kept: Tensor, k: int, m: int) -> Tensor:
    """Keep the tokens `kept` (B, k), merge the others into m by the cosine similarity of `metric`."""
    B, S, _ = hidden.shape
    remains = torch.ones(B, S, dtype=torch.bool, device=hidden.device).scatter_(1, kept, False)
    metric = metric[remains].view(B, S - k, metric.shape[2])
    metric = metric / metric.norm(dim=-1, keepdim=True)
    targets, to_merge = _targets(S - k, m, hidden.device)
    similarity = torch.bmm(metric[:, to_merge], metric[:, targets].transpose(1, 2))
    return _merge(hidden, remains, targets, to_merge, similarity.argmax(2))


def _apply_decision(x: Tensor, assignment: Tensor, k: int, m: int) -> Tensor:
    """Merge x by a decision."""
    B, S, _ = x.shape
    remains = assignment >= k
    targets, to_merge = _targets(S - k, m, x.device)
    return _merge(x, remains, targets, to_merge, assignment[remains].view(B, S - k)[:, to_merge] - k)


def _targets(remaining: int, m: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Among the remaining tokens: the targets' numbers, and a mask of those to merge."""
    number = torch.arange(remaining, device=device)
    targets = number[:: max(1, remaining // m)][:m]
    return targets, ~torch.isin(number, targets)


def _merge(hidden: Tensor, remains: Tensor, targets: Tensor, to_merge: Tensor, joined: Tensor) -> Tensor:
    """Kept rows by mask, merged rows by a product with the one-hot matrix of the targets `joined` (B, n)."""
    B, _, C = hidden.shape
    kept = hidden.masked_select(~remains.unsqueeze(-1)).view(B, -1, C)
    others = hidden.masked_select(remains.unsqueeze(-1)).view(B, -1, C)
    one_hot = torch.zeros(*joined.shape, len(targets), dtype=hidden.dtype, device=hidden.device)
    one_hot.scatter_(2, joined.unsqueeze(-1), 1)
    counts = one_hot.sum(1).clamp(min=1).unsqueeze(-1)
    means = torch.bmm(one_hot.transpose(1, 2), others[:, to_merge]) / counts
    return torch.cat([kept, others[:, targets] + means], 1)


def recipe_by_indices(case: Case, inputs: Inputs) -> Tensor:
    """The recipe's steps with indices where it has boolean masks.

    A mask's count is known to the GPU alone, so that the released code makes the CPU wait for it: it can neither be
    recorded in a CUDA graph nor compiled as one graph. What torch.compile is measured on is this.
    """
    hidden, (k, m) = inputs["hidden"], (case.k, case.m)
    R = case.S - k
    if case.op == "merge":
        remains = inputs["assignment"] >= k
    else:
        remains = torch.ones(case.B, case.S, dtype=torch.bool, device=hidden.device)
        remains = remains.scatter(1, _kept(case, inputs), False)
    kept, rest = remains.to(torch.uint8).sort(dim=1, stable=True).indices.split([k, R], 1)
    step = R // m
    targets, to_merge = rest[:, ::step][:, :m], rest.index_select(1, _numbers_to_merge(R, m, hidden.device))
    if case.op == "merge":
        joined = inputs["assignment"].gather(1, to_merge) - k
    else:
        metric = inputs["keys"].mean(1)
        metric = metric / metric.norm(dim=-1, keepdim=True)
        joined = torch.bmm(_rows(metric, to_merge), _rows(metric, targets).transpose(1, 2)).argmax(2)
    one_hot = torch.zeros(*joined.shape, m, dtype=hidden.dtype, device=hidden.device)
    one_hot = one_hot.scatter(2, joined.unsqueeze(-1), 1)
    counts = one_hot.sum(1).clamp(min=1).unsqueeze(-1)
    means = torch.bmm(one_hot.transpose(1, 2), _rows(hidden, to_merge)) / counts
    return torch.cat([_rows(hidden, kept), _rows(hidden, targets) + means], 1)


def _numbers_to_merge(remaining: int, m: int, device: torch.device) -> Tensor:
    """Among the remaining tokens, the numbers of those that are no targets: computed, as data could not be recorded."""
    step = remaining // m
    number = torch.arange(remaining - m, device=device)
    between = number // max(1, step - 1) * step + number % max(1, step - 1) + 1
    return torch.where(number < m * (step - 1), between, number + m)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (B, n) of x (B, S, C)."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[2]))


def recipe_by_heads(case: Case, inputs: Inputs) -> Tensor:
    """The recipe, but scored head by head, in memory that stays in a cache: the most that eager code can do.

    Nobody's encoder attends like this. All heads' attention at once is beyond what malloc keeps, so that the recipe
    spends about half of its time on page faults; this one has none.
    """
    if case.op == "zip_packed":
        return torch.cat([recipe_by_heads(*image)[0] for image in packed_images(case, inputs)])
    scores = inputs["hidden"].new_zeros(case.B, case.S * case.group, dtype=torch.float32)
    for b in range(case.B):
        for query, key in zip(inputs["queries"][b], inputs["keys"][b], strict=True):
            scores[b] += ((query * case.scale) @ key.T).softmax(-1).mean(0)
    kept = _of_tokens(scores, case).topk(case.k, dim=1).indices
    return _compress(inputs["hidden"], _of_tokens(inputs["keys"].mean(1), case), kept, case.k, case.m)


def eager(function: Function) -> Provider:
    """The function as it is."""
    return lambda case, inputs: lambda: function(case, inputs)


def compiled(function: Function) -> Provider:
    """The function under torch.compile, as one graph, for this case's shapes."""

    def prepare(case: Case, inputs: Inputs) -> Call:
        whole = torch.compile(lambda inputs: function(case, inputs), fullgraph=True, dynamic=False)
        return lambda: whole(inputs)

    return prepare


def in_cuda_graph(provider: Provider) -> Provider:
    """The provider's call, recorded once and replayed."""

    def prepare(case: Case, inputs: Inputs) -> Call:
        call = provider(case, inputs)
        _warm_up(call)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            tokens = call()
        tokens.fill_(float("nan"))  # so that the check sees only what a replay wrote

        def replay() -> Tensor:
            graph.replay()
            return tokens

        return replay

    return prepare


def _warm_up(call: Call) -> None:
    """What happens at first calls only must not be recorded; beside the default stream, as recording demands."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)


def given_lse(function: Function) -> Provider:
    """The function, given also the log-sum-exp of each row, as the encoder's attention may have computed it."""

    def prepare(case: Case, inputs: Inputs) -> Call:
        with_lse = {**inputs, "lse": _lse(case, inputs)}
        return lambda: function(case, with_lse)

    return prepare


def _lse(case: Case, inputs: Inputs) -> Tensor:
    """(B, H, S) float32; of packed images (H, cells)."""
    if case.op == "zip_packed":
        return torch.cat([_lse(*image)[0] for image in packed_images(case, inputs)], 1)
    rows = [(q.float() @ k.float().T * case.scale).logsumexp(-1) for q, k in _heads(inputs)]
    return torch.stack(rows).unflatten(0, inputs["queries"].shape[:2])


def _heads(inputs: Inputs) -> Iterator[tuple[Tensor, Tensor]]:
    """Queries and keys of each head of each image."""
    return zip(inputs["queries"].flatten(0, 1), inputs["keys"].flatten(0, 1), strict=True)


@dataclass(frozen=True)
class Attention:
    """A yardstick: the layer's own attention, by SDPA. It computes no tokens, and nothing of it is checked."""

    layers: list[tuple[Tensor, Tensor]]
    """Queries and keys (B, H, S, D), one pair for each packed image. Keys stand for values as well."""
    scale: float

    def __call__(self) -> Tensor:
        """Attend; the last result."""
        for queries, keys in self.layers:
            result = torch.nn.functional.scaled_dot_product_attention(queries, keys, keys, scale=self.scale)
        return result


def sdpa(case: Case, inputs: Inputs) -> Call:
    """The forward pass of the layer's attention, which the encoder has to do anyway."""
    images = packed_images(case, inputs) if case.op == "zip_packed" else [(case, inputs)]
    return Attention([(own["queries"], own["keys"]) for _, own in images], case.scale)


@dataclass(frozen=True)
class Copy:
    """A call that computes nothing."""

    source: Tensor
    destination: Tensor

    def __call__(self) -> Tensor:
        """Copy, and return the destination."""
        return self.destination.copy_(self.source)


def copy(case: Case, inputs: Inputs) -> Call:
    """A copy on the device that moves as many bytes as the operator has to: half of them read, half written."""
    source = torch.randint(256, (case.bytes_moved // 2,), dtype=torch.uint8, device=inputs["hidden"].device)
    destination = torch.zeros_like(source)
    return Copy(source, destination)


CPU_PROVIDERS: dict[str, Provider] = {
    "ours": eager(ours),
    "ours-lse": given_lse(ours),
    "recipe": eager(recipe),
    "by-heads": eager(recipe_by_heads),
    "compiled": compiled(recipe_by_indices),
    "sdpa": sdpa,
}

CUDA_PROVIDERS: dict[str, Provider] = {
    "ours": eager(ours),
    "ours-graph": in_cuda_graph(eager(ours)),
    "ours-lse": given_lse(ours),
    "recipe": eager(recipe),
    "compiled": compiled(recipe_by_indices),
    "compiled-graph": in_cuda_graph(compiled(recipe_by_indices)),
    "sdpa": sdpa,
    "copy": copy,
}

OURS = ("ours", "ours-graph", "ours-lse")
FOR_ALL_QUERIES = ("ours-lse", "by-heads", "sdpa")
"""Only where scores come from the attention of all queries; on a CPU `compiled`, which takes a minute, too."""


def all_providers(device: str = "cpu") -> dict[str, Provider]:
    """Everybody who is measured on a device."""
    return CUDA_PROVIDERS if device == "cuda" else CPU_PROVIDERS


def is_for(name: str, case: Case, device: str = "cpu") -> bool:
    """Whether a provider is measured on a case."""
    if name.startswith("compiled"):
        return case.op != "zip_packed" and (device == "cuda" or case.needs_all_queries)
    return case.needs_all_queries or name not in FOR_ALL_QUERIES
