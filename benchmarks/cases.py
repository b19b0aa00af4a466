"""What is measured: problems of the sizes that vision-language models have, and the inputs for them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from visionzip_ext import Budgets, allocate_budgets, reference

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One operator on one problem: B images of S tokens with C channels, H heads of D channels, kept k, merged m.

    Packed images have `lengths`, in tokens of `group` cells; S is the largest then, and k and m are for all of them.
    """

    model: str
    op: str
    B: int
    S: int
    C: int
    H: int
    D: int
    k: int
    m: int
    dtype: torch.dtype
    has_cls: bool = True
    merge: str = "residual"
    policy: str = "attention"
    lengths: tuple[int, ...] = ()
    group: int = 1

    @property
    def name(self) -> str:
        """Unique and stable: results of two runs are matched by it."""
        dtype = str(self.dtype).removeprefix("torch.")
        policy = "" if self.policy == "attention" else f"/{self.policy}"
        return f"{self.op}/{self.model}/B{self.B}/k{self.k}-m{self.m}/{dtype}{policy}"

    @property
    def scale(self) -> float:
        """The attention's factor on Q K^T."""
        return self.D**-0.5

    @property
    def needs_all_queries(self) -> bool:
        """Whether scores come from the attention of all queries, which nobody has at hand."""
        return self.op == "zip_packed" or (self.op == "zip_qk" and not self.has_cls)

    @cached_property
    def budgets(self) -> Budgets:
        """k and m of each packed image, by its size: worked out once, and by no call that is timed."""
        return allocate_budgets(self.lengths, total=self.k + self.m, contextual_share=self.m / (self.k + self.m))

    @property
    def bytes_moved(self) -> int:
        """What the operator has to read and write: every tensor once, but of attention only the rows that count."""
        element = self.dtype.itemsize
        if self.op == "zip_packed":
            T, rows = sum(self.lengths), self.k + self.m
            read = T * self.C + 2 * self.group * T * self.H * self.D
            return element * (read + rows * self.C) + 8 * (sum(self.budgets.k) + T)
        output = (self.k + self.m) * self.C
        if self.op == "merge":
            return self.B * (element * (self.S * self.C + output) + 8 * self.S)
        rows = 1 if self.has_cls else self.S
        attention = self.H * rows * (self.D if self.op == "zip_qk" else self.S)
        read = self.S * self.C + self.H * self.S * self.D + attention
        return self.B * (element * (read + output) + 8 * (self.k + self.S))

    def inputs(self, device: torch.device, seed: int) -> Inputs:
        """The operator's tensors; queries and keys are the transposed views that an encoder's projections give."""
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device).to(self.dtype)

        if self.op == "zip_packed":
            starts = torch.tensor(list(accumulate(self.lengths, initial=0)), dtype=torch.int32, device=device)
            T, heads = sum(self.lengths), (self.H, self.D)
            queries, keys = (normal(self.group * T, *heads) for _ in range(2))
            return {"hidden": normal(T, self.C), "queries": queries, "keys": keys, "cu_seqlens": starts}
        hidden = normal(self.B, self.S, self.C)
        keys = normal(self.B, self.S, self.H, self.D).transpose(1, 2)
        if self.op == "zip_qk":
            return {"hidden": hidden, "queries": normal(self.B, self.S, self.H, self.D).transpose(1, 2), "keys": keys}
        if self.op == "merge":
            scores = torch.rand(self.B, self.S, generator=generator, device=device)
            decision = reference.select(keys, scores, self.k, self.m, self.has_cls)
            return {"hidden": hidden, "assignment": decision[1]}
        return {"hidden": hidden, "keys": keys, "attn": self._attention(generator, device)}

    def _attention(self, generator: torch.Generator, device: torch.device) -> Tensor:
        """(B, H, S, S). With CLS nobody reads another row than CLS's, so that the others stay zero."""
        attn = torch.zeros(self.B, self.H, self.S, self.S, dtype=self.dtype, device=device)
        rows = attn[:, :, :1] if self.has_cls else attn
        rows.copy_(torch.randn(rows.shape, generator=generator, device=device).softmax(-1))
        return attn


CLIP = {"model": "clip-vit-l-336", "S": 577, "C": 1024, "H": 16, "D": 64}
SIGLIP = {"model": "siglip-so400m-384", "S": 729, "C": 1152, "H": 16, "D": 72, "has_cls": False}

LONG_MEAN = {**CLIP, "model": "long-mean", "S": 4096, "has_cls": False}
# Eight images of 256 to 4096 cells, merged 2 x 2, as Qwen2.5-VL's encoder packs them; a fifth of the tokens stays.
CELLS = (256, 576, 1024, 1024, 1600, 2304, 3136, 4096)
PACKED = {
    "model": "qwen2.5-vl",
    "op": "zip_packed",
    "B": len(CELLS),
    "S": max(CELLS) // 4,
    "C": 2048,
    "H": 16,
    "D": 80,
    "k": 590,
    "m": 110,
    "has_cls": False,
    "lengths": tuple(cells // 4 for cells in CELLS),
    "group": 4,
}

BUDGETS = ((54, 10), (108, 20))  # LLaVA-1.5 at 64 and 128 tokens (tables 8 and 9 of the paper)
BATCHES = (1, 5, 32)  # one image, LLaVA-NeXT's five tiles, a training batch
DTYPES = (torch.float32, torch.bfloat16)


def cpu_cases() -> list[Case]:
    """Everything that is measured on a CPU."""
    cases = [
        Case(op="zip", B=B, k=k, m=m, dtype=dtype, **CLIP) for B in BATCHES for dtype in DTYPES for k, m in BUDGETS
    ]
    cases += [
        Case(op="zip", B=B, k=54, m=0, dtype=dtype, policy="distinct", **CLIP) for B in BATCHES for dtype in DTYPES
    ]
    for op in ("zip_qk", "merge"):
        cases += [Case(op=op, B=B, k=54, m=10, dtype=dtype, **CLIP) for B in BATCHES for dtype in DTYPES]
    cases += [Case(op="zip_qk", B=B, k=54, m=10, dtype=dtype, **SIGLIP) for B in (1, 5) for dtype in DTYPES]
    cases += [Case(op="zip_qk", B=1, k=384, m=64, dtype=torch.bfloat16, **LONG_MEAN)]
    return [*cases, *(Case(**PACKED, dtype=dtype) for dtype in DTYPES)]


LLAVA = {**CLIP, "model": "llava-1.5"}
LLAVA_NEXT = {**CLIP, "model": "llava-next"}
VIDEO_LLAVA = {**CLIP, "model": "video-llava", "S": 257}
LONG = {**CLIP, "model": "long", "S": 4096}

LLAVA_BUDGETS = ((54, 10), (108, 20), (162, 30))  # 64, 128 and 192 tokens
TILE_BUDGETS = ((27, 5), (54, 10), (108, 20))  # of each of five tiles: 160, 320 and 640 tokens
LLAVA_BATCHES = (1, 8, 32, 160)


def cuda_cases() -> list[Case]:
    """Everything that is measured on a GPU: few enough for torch.compile, which takes seconds for each."""
    bf16 = {"dtype": torch.bfloat16}
    at_64 = {"k": 54, "m": 10}
    return [
        *(Case(op="zip", B=1, k=k, m=m, **bf16, **LLAVA) for k, m in LLAVA_BUDGETS),
        *(Case(op="zip", B=B, **at_64, **bf16, **LLAVA) for B in LLAVA_BATCHES[1:]),
        Case(op="zip", B=160, k=162, m=30, **bf16, **LLAVA),
        *(Case(op="zip", B=B, **at_64, dtype=torch.float32, **LLAVA) for B in (1, 160)),
        Case(op="zip", B=1, **at_64, dtype=torch.float16, **LLAVA),
        *(Case(op="zip_qk", B=B, **at_64, **bf16, **LLAVA) for B in (1, 160)),
        *(Case(op="merge", B=B, **at_64, **bf16, **LLAVA) for B in (1, 160)),
        *(Case(op="zip_qk", B=5, k=k, m=m, **bf16, **LLAVA_NEXT) for k, m in TILE_BUDGETS),
        *(Case(op=op, B=8, k=14, m=3, **bf16, **VIDEO_LLAVA) for op in ("zip", "zip_qk")),
        Case(op="zip", B=1, **at_64, **bf16, **SIGLIP),
        *(Case(op="zip_qk", B=B, **at_64, **bf16, **SIGLIP) for B in (1, 8)),
        *(Case(op="zip_qk", B=B, k=384, m=64, **bf16, **LONG) for B in (1, 8)),
        Case(op="zip_qk", B=1, k=384, m=64, **bf16, **LONG_MEAN),
        Case(**PACKED, **bf16),
    ]


def all_cases(device: str = "cpu") -> list[Case]:
    """Everything that `python -m benchmarks --device DEVICE` measures."""
    return cuda_cases() if device == "cuda" else cpu_cases()


def quick_cases() -> list[Case]:
    """The same operators at sizes that take milliseconds, to try the benchmarks themselves."""
    tiny_packed = {"model": "tiny-packed", "B": 2, "S": 9, "C": 24, "H": 2, "D": 8, "k": 5, "m": 3, "lengths": (9, 6)}
    tiny = {"B": 2, "S": 37, "C": 24, "H": 2, "D": 8, "k": 5, "m": 3}
    return [
        *(Case("tiny", op, **tiny, dtype=dtype) for op in ("zip", "zip_qk", "merge") for dtype in DTYPES),
        Case("tiny-mean", "zip_qk", **tiny, dtype=torch.float32, has_cls=False),
        Case(**{**PACKED, **tiny_packed}, dtype=torch.float32),
    ]


def first_images(case: Case, inputs: Inputs, n: int) -> Inputs:
    """The inputs of the first n images alone; of packed images all."""
    return inputs if case.lengths else {name: x[:n] for name, x in inputs.items()}


def packed_images(case: Case, inputs: Inputs) -> list[tuple[Case, Inputs]]:
    """Each packed image as a case of its own: hidden (1, S, C), queries and keys (1, H, group * S, D)."""
    starts = accumulate(case.lengths, initial=0)
    images = []
    for (start, stop), k, m in zip(pairwise(starts), *case.budgets, strict=True):
        cells = slice(start * case.group, stop * case.group)
        own = {name: inputs[name][cells].transpose(0, 1).unsqueeze(0) for name in ("queries", "keys")}
        single = replace(case, op="zip_qk", B=1, S=stop - start, k=k, m=m, lengths=())
        images.append((single, {"hidden": inputs["hidden"][start:stop].unsqueeze(0), **own}))
    return images
