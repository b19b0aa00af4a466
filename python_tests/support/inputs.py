"""Random problems for the operators: shapes worth testing, and calls with inputs for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from support.backends import Backend
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
F32, F16, BF16 = DTYPES
DECIDING = ("select", "select_qk")
ZIPPING = ("zip", "zip_qk")
CARRYING = ("merge", "merge_backward")
OPS = DECIDING + ZIPPING + CARRYING
MERGE_WORDS = ("residual", "mean")

ATTN_FORMS = ("matrix", "rows", "scores")  # (B, H, S, S), (B, H, S), (B, S)
KEYS_FORMS = ("heads", "mean")  # (B, H, S, D), (B, S, D)


def dtype_name(dtype: torch.dtype) -> str:
    """float32 for torch.float32: for ids and messages."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Shape:
    """The sizes of a problem, in the symbols of docs/specification.md."""

    B: int
    S: int
    C: int
    H: int
    D: int
    k: int
    m: int
    has_cls: bool = True
    policy: str = "attention"
    keep_cls: bool = True

    def __str__(self) -> str:
        sizes = f"B{self.B}-S{self.S}-C{self.C}-H{self.H}-D{self.D}-k{self.k}-m{self.m}"
        policy = "" if self.policy == "attention" else f"-{self.policy}"
        return f"{sizes}{'' if self.has_cls else '-nocls'}{policy}{'' if self.keep_cls else '-dropcls'}"

    @property
    def rule(self) -> dict[str, Any]:
        """The keyword-only arguments that say how tokens are chosen."""
        return {"has_cls": self.has_cls, "policy": self.policy, "keep_cls": self.keep_cls}


SMALL = Shape(B=3, S=41, C=20, H=3, D=16, k=7, m=5)

SHAPES = (
    Shape(B=2, S=577, C=1024, H=16, D=64, k=54, m=10),  # CLIP ViT-L/14-336 at 64 tokens
    Shape(B=1, S=577, C=64, H=16, D=64, k=162, m=30),  # at 192 tokens
    Shape(B=1, S=729, C=72, H=16, D=72, k=54, m=10, has_cls=False),  # SigLIP so400m
    Shape(B=3, S=257, C=33, H=4, D=80, k=13, m=4),  # a video's frames
    Shape(B=17, S=50, C=8, H=2, D=128, k=6, m=3),  # more images than threads
    Shape(B=1, S=1500, C=24, H=2, D=64, k=200, m=300),  # long, many targets
    Shape(B=1, S=1025, C=16, H=1, D=32, k=1000, m=20, has_cls=False),  # nearly everything kept
    Shape(B=2, S=33, C=8, H=2, D=8, k=33, m=0),  # the identity
    Shape(B=2, S=33, C=8, H=2, D=8, k=33, m=0, has_cls=False),
    Shape(B=2, S=50, C=17, H=3, D=33, k=7, m=0),  # the rest dropped
    Shape(B=2, S=40, C=12, H=2, D=80, k=10, m=20),  # m > R / 2: every remaining token from the first on is a target
    Shape(B=2, S=40, C=12, H=2, D=16, k=10, m=29),  # one token to merge
    Shape(B=2, S=30, C=7, H=1, D=16, k=10, m=20),  # m = R: nothing to merge
    Shape(B=2, S=64, C=8, H=2, D=32, k=0, m=8, has_cls=False),  # nothing kept
    Shape(B=2, S=64, C=8, H=2, D=32, k=1, m=8),  # CLS alone kept
    Shape(B=2, S=64, C=9, H=2, D=32, k=5, m=1),  # one target
    Shape(B=2, S=45, C=1, H=3, D=1, k=5, m=4),  # one channel
    Shape(B=2, S=45, C=3, H=2, D=0, k=5, m=4),  # keys without channels: all equal
    Shape(B=1, S=1, C=8, H=2, D=8, k=1, m=0),  # CLS and nothing else
    Shape(B=2, S=1, C=5, H=1, D=4, k=0, m=1, has_cls=False),  # one token, a target
    Shape(B=2, S=2, C=5, H=1, D=4, k=1, m=1),
    Shape(B=0, S=41, C=20, H=3, D=16, k=7, m=5),  # no images
    Shape(B=2, S=41, C=0, H=3, D=16, k=7, m=5),  # no channels
)


def normal(rng: torch.Generator, *shape: int, dtype: torch.dtype = F32) -> Tensor:
    """Normally distributed."""
    return torch.randn(shape, generator=rng).to(dtype)


def random_keys(rng: torch.Generator, shape: Shape, dtype: torch.dtype = F32, form: str = "heads") -> Tensor:
    """Keys in one of KEYS_FORMS; (B, H, S, D) as attention has them, a transposed view."""
    if form == "mean":
        return normal(rng, shape.B, shape.S, shape.D, dtype=dtype)
    return normal(rng, shape.B, shape.S, shape.H, shape.D, dtype=dtype).transpose(1, 2)


def random_attention(rng: torch.Generator, shape: Shape, dtype: torch.dtype = F32, form: str = "matrix") -> Tensor:
    """Softmaxed attention in one of ATTN_FORMS."""
    sizes = {"matrix": (shape.H, shape.S, shape.S), "rows": (shape.H, shape.S), "scores": (shape.S,)}[form]
    return (2 * normal(rng, shape.B, *sizes)).softmax(-1).to(dtype)


def bytes_of_storage(x: Tensor) -> Tensor:
    """All that a tensor's storage holds, also what lies between and around the tensor's elements."""
    return torch.empty(0, dtype=torch.uint8, device=x.device).set_(x.untyped_storage())


def laid_out_alike(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Tensors on a device, with the strides and offsets that they have here; those that share a storage share it there.

    `Tensor.to` would make them dense. It still moves those that require gradients, as its derivative is known.
    """
    storages: dict[int, torch.UntypedStorage] = {}

    def copy(x: Tensor) -> Tensor:
        if x.requires_grad:
            return x.to(device, copy=True)
        place = x.untyped_storage().data_ptr()
        if place not in storages:
            storages[place] = bytes_of_storage(x).to(device, copy=True).untyped_storage()
        empty = torch.empty(0, dtype=x.dtype, device=device)
        return empty.set_(storages[place], x.storage_offset(), x.shape, x.stride())

    return {name: copy(x) for name, x in tensors.items()}


AnyCall = TypeVar("AnyCall", bound="OperatorCall")


@dataclass(frozen=True)
class OperatorCall(ABC):
    """An operator with its arguments, to be made on any backend."""

    op: str
    tensors: dict[str, Tensor]
    """By argument name; the positional ones first, in the schema's order."""

    @property
    @abstractmethod
    def args(self) -> tuple[Any, ...]:
        """The positional arguments."""

    @property
    @abstractmethod
    def kwargs(self) -> dict[str, Any]:
        """The keyword-only arguments."""

    def with_tensors(self: AnyCall, **tensors: Tensor) -> AnyCall:
        """The same call with other tensors."""
        return replace(self, tensors={**self.tensors, **tensors})

    def with_each(self: AnyCall, change: Callable[[Tensor], Tensor]) -> AnyCall:
        """The same call with every tensor changed."""
        return replace(self, tensors={name: change(x) for name, x in self.tensors.items()})

    def moved(self: AnyCall, backend: Backend) -> AnyCall:
        """The same call with its tensors where a backend takes them, laid out as they are."""
        elsewhere = {name: x for name, x in self.tensors.items() if x.device.type != backend.device.type}
        return self.with_tensors(**laid_out_alike(elsewhere, backend.device))

    def through(self, ops: Any) -> Any:
        """Make the call on what has the operators as attributes, such as `torch.ops.visionzip`."""
        return getattr(ops, self.op)(*self.args, **self.kwargs)

    def on(self, backend: Backend) -> tuple[Tensor, ...]:
        """Make the call on a backend; always a tuple of results, on the CPU."""
        results = self.moved(backend).through(backend.ops)
        return tuple(x.cpu() for x in ([results] if isinstance(results, Tensor) else results))


@dataclass(frozen=True)
class Call(OperatorCall):
    """A call of an operator on a batch."""

    k: int
    m: int
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword-only arguments."""

    @property
    def args(self) -> tuple[Any, ...]:
        """The positional arguments."""
        return (*(x for name, x in self.tensors.items() if name != "lse"), self.k, self.m)

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword-only arguments."""
        lse = {"lse": self.tensors["lse"]} if "lse" in self.tensors else {}
        return {**self.options, **lse}

    @property
    def has_cls(self) -> bool:
        """Whether token 0 is CLS."""
        return self.options.get("has_cls", True)


def random_call(
    op: str,
    rng: torch.Generator,
    shape: Shape,
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype] = (F32, F32, F32),
    *,
    merge: str = "residual",
    attn: str = "matrix",
    keys: str = "heads",
    lse: bool = False,
) -> Call:
    """A call of `op` with random inputs; `dtypes` are those of hidden (or x, or grad), keys (and queries) and attn."""
    of_hidden, of_keys, of_attn = dtypes
    tensors: dict[str, Tensor] = {}
    options: dict[str, Any] = {}
    if op in ZIPPING:
        tensors["hidden"] = normal(rng, shape.B, shape.S, shape.C, dtype=of_hidden)
    if op in CARRYING:
        rows = shape.S if op == "merge" else shape.k + shape.m
        tensors["x" if op == "merge" else "grad"] = normal(rng, shape.B, rows, shape.C, dtype=of_hidden)
        tensors["assignment"] = random_assignment(rng, shape)
    elif op.endswith("_qk"):
        tensors["queries"] = random_keys(rng, shape, of_keys)
        tensors["keys"] = random_keys(rng, shape, of_keys)
        options["scale"] = max(shape.D, 1) ** -0.5
        if lse:
            logits = tensors["queries"].float() @ tensors["keys"].float().mT * options["scale"]
            tensors["lse"] = logits.logsumexp(-1)
    else:
        tensors["keys"] = random_keys(rng, shape, of_keys, keys)
        tensors["attn"] = random_attention(rng, shape, of_attn, attn)
    if op not in CARRYING:
        options |= shape.rule
    if op not in DECIDING:
        options["merge"] = merge
    return Call(op, tensors, shape.k, shape.m, options)


def nearly_tied(call: Call) -> Call:
    """The call with keys and attention that differ between tokens by little more than float32's rounding.

    Which tokens are kept and which target is nearest then hangs on the last bits of scores and similarities, which the
    results do not show otherwise.
    """
    tensors = {}
    for name, x in call.tensors.items():
        if name == "keys":
            wide = x.float()
            tensors[name] = wide.narrow(-2, 0, 1) + wide * 2e-7
        elif name == "attn":
            tensors[name] = 1 / x.shape[-1] + (x.float() - 1 / x.shape[-1]) * 1e-6
    return call.with_tensors(**tensors)


def random_assignment(rng: torch.Generator, shape: Shape) -> Tensor:
    """A random decision (B, S): any k tokens kept, CLS among them, and any target for each token to merge."""
    if not shape.keep_cls:
        patches = random_assignment(rng, replace(shape, S=shape.S - 1, has_cls=False, keep_cls=True))
        return torch.cat([torch.full((shape.B, 1), -1), patches], 1)
    scores = torch.rand(shape.B, shape.S, generator=rng)
    if shape.has_cls:
        scores[:, 0] = 2
    kept = torch.zeros(shape.B, shape.S, dtype=torch.bool)
    kept.scatter_(1, scores.topk(shape.k, dim=1).indices, True)
    if shape.m == 0:
        return torch.where(kept, kept.cumsum(1) - 1, -1)
    step = max(1, (shape.S - shape.k) // shape.m)
    rank = (~kept).cumsum(1) - 1
    is_target = (rank % step == 0) & (rank // step < shape.m)
    joined = torch.randint(shape.m, (shape.B, shape.S), generator=rng)
    return torch.where(kept, kept.cumsum(1) - 1, shape.k + torch.where(is_target, rank // step, joined))
