"""Who does the work that is timed: this library, PyTorch in its released and its best form, and yardsticks.

A provider is prepared for a case's inputs, which may compile or record a CUDA graph, and gives the call that is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.cases import Case, Inputs, packed_images
from benchmarks.pytorch_forms import best, best_by_heads, released

Function = Callable[[Case, Inputs], Tensor]
"""Computes a case's tokens (B, k + m, C) from its inputs."""

Call = Callable[[], Tensor]

Provider = Callable[[Case, Inputs], Call]
"""Makes the call that computes a case's tokens from these inputs, which stay where they are."""


def ours(case: Case, inputs: Inputs) -> Tensor:
    """This library's operator."""
    ops, options = torch.ops.visionzip, {"has_cls": case.has_cls, "merge": case.merge}
    if case.op == "merge":
        return ops.merge(inputs["hidden"], inputs["assignment"], case.k, case.m, merge=case.merge)
    options["policy"] = case.policy
    if case.op == "zip_packed":
        tensors = [inputs[name] for name in ("hidden", "keys", "cu_seqlens")]
        options |= {"queries": inputs["queries"], "scale": case.scale, "lse": inputs.get("lse")}
        return ops.zip_packed(*tensors, *case.budgets, group=case.group, max_seqlen=case.S, **options)[0]
    if case.op == "zip_qk":
        hidden, queries, keys = inputs["hidden"], inputs["queries"], inputs["keys"]
        options |= {"scale": case.scale, "lse": inputs.get("lse")}
        return ops.zip_qk(hidden, queries, keys, case.k, case.m, **options)[0]
    return ops.zip(inputs["hidden"], inputs["keys"], inputs["attn"], case.k, case.m, **options)[0]


def best_eager(case: Case, inputs: Inputs) -> Tensor:
    """The best form; where all queries score, head by head, which took half of the time of all heads at once."""
    return best_by_heads(case, inputs) if case.needs_all_queries else best(case, inputs)


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


@dataclass(frozen=True)
class Read:
    """A call that only reads."""

    source: Tensor

    def __call__(self) -> Tensor:
        """Add everything up."""
        return self.source.sum()


def read(case: Case, inputs: Inputs) -> Call:
    """A pass over as many bytes as hidden and keys have, which no operator can do without: the roofline of a CPU."""
    size = sum(inputs[name].nbytes for name in ("hidden", "keys") if name in inputs)
    return Read(torch.ones(size // 4))


def copy(case: Case, inputs: Inputs) -> Call:
    """A copy on the device that moves as many bytes as the operator has to: half of them read, half written."""
    source = torch.randint(256, (case.bytes_moved // 2,), dtype=torch.uint8, device=inputs["hidden"].device)
    destination = torch.zeros_like(source)
    return Copy(source, destination)


CPU_PROVIDERS: dict[str, Provider] = {
    "ours": eager(ours),
    "ours-lse": given_lse(ours),
    "best-eager": eager(best_eager),
    "compiled": compiled(best),
    "released": eager(released),
    "sdpa": sdpa,
    "read": read,
}

CUDA_PROVIDERS: dict[str, Provider] = {
    "ours": eager(ours),
    "ours-graph": in_cuda_graph(eager(ours)),
    "ours-lse": given_lse(ours),
    "released": eager(released),
    "compiled": compiled(best),
    "compiled-graph": in_cuda_graph(compiled(best)),
    "sdpa": sdpa,
    "copy": copy,
}

OURS = ("ours", "ours-graph", "ours-lse")
YARDSTICKS = ("read", "copy")
"""What the machine can do at most with the same bytes: a CPU reads them, a GPU copies them."""
STRONGEST = ("best-eager", "compiled", "compiled-graph")
"""PyTorch's best; the fastest of them in a case is whom we are compared with."""
FOR_ALL_QUERIES = ("ours-lse", "sdpa")
"""Only where scores come from the attention of all queries."""


def all_providers(device: str = "cpu") -> dict[str, Provider]:
    """Everybody who is measured on a device."""
    return CUDA_PROVIDERS if device == "cuda" else CPU_PROVIDERS


def is_for(name: str, case: Case, device: str = "cpu") -> bool:
    """Whether a provider is measured on a case."""
    if case.policy != "attention" and name not in (*OURS, *YARDSTICKS):
        return False  # PyTorch's forms keep the highest scores
    if name.startswith("compiled") and case.lengths:
        return False  # a graph of all images, each of its own size: minutes to compile, and nobody would
    return case.needs_all_queries or name not in FOR_ALL_QUERIES
