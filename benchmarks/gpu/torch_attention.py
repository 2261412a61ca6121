"""PyTorch's attention on the same rows: SDPA without and with a bias, and flex_attention."""

import time
from collections.abc import Callable

import jax
import numpy as np

from benchmarks.gpu.tables import attempt


def measure(rows: str, ids_BL: jax.Array, heads: int, head_size: int, flops: float) -> None:
    """Lines of the table of `attention`; one that says so where there is no PyTorch."""
    attempt(
        rows,
        lambda: ["torch", *_checked()],
        ours=False,
    )
    try:
        import torch
    except ImportError:
        return
    case = _Case(torch, np.asarray(ids_BL), heads, head_size, flops)
    for name, function in case.implementations():
        attempt(rows, lambda n=name, f=function: [f"torch, {n}", *case.cells(f)], ours=False)


def _checked() -> list[str]:
    import torch

    return [torch.__version__, "on a GPU" if torch.cuda.is_available() else "on a CPU", "", ""]


class _Case:
    def __init__(self, torch, ids_BL: np.ndarray, heads: int, head_size: int, flops: float):
        self.torch, self.flops = torch, flops
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.ids_BL = torch.tensor(ids_BL, device=self.device)
        self.heads = heads
        rows, length = ids_BL.shape
        shape = (rows, heads, length, head_size)
        self.qkv = [
            torch.randn(shape, device=self.device, dtype=torch.bfloat16, requires_grad=True)
            for _ in range(3)
        ]
        self.slopes_H = 2.0 ** -torch.arange(1, heads + 1, device=self.device).float()

    def implementations(self) -> list[tuple[str, Callable]]:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        torch, ids_BL, slopes_H = self.torch, self.ids_BL, self.slopes_H
        sdpa = torch.nn.functional.scaled_dot_product_attention
        rows, length = ids_BL.shape
        column_L = torch.arange(length, device=self.device)
        distance_LL = (column_L[:, None] - column_L).abs()
        bias_1HLL = (-slopes_H[:, None, None] * distance_LL)[None].to(torch.bfloat16)
        same_B1LL = (ids_BL[:, :, None] == ids_BL[:, None, :])[:, None]
        bias_BHLL = bias_1HLL.masked_fill(~same_B1LL, -torch.inf)

        def document(b, h, i, j):
            return ids_BL[b, i] == ids_BL[b, j]

        def alibi(score, b, h, i, j):
            return score - slopes_H[h] * (i - j).abs()

        compiled = torch.compile(flex_attention) if self.device == "cuda" else flex_attention
        block_mask = create_block_mask(document, rows, None, length, length, device=self.device)
        return [
            ("SDPA, neither bias nor mask", sdpa),
            ("SDPA, bias and mask as an array", lambda q, k, v: sdpa(q, k, v, attn_mask=bias_BHLL)),
            (
                "flex_attention, ALiBi and a document mask",
                lambda q, k, v: compiled(q, k, v, score_mod=alibi, block_mask=block_mask),
            ),
        ]

    def cells(self, function: Callable) -> tuple[str, str, str, str]:
        """Forward is timed with what backward needs being kept."""
        from benchmarks.gpu.attention import milliseconds

        out = function(*self.qkv)
        d_out = self.torch.randn_like(out)
        forward = self.seconds(lambda: function(*self.qkv))
        gradient = self.torch.autograd.grad
        backward = self.seconds(lambda: gradient(out, self.qkv, d_out, retain_graph=True))
        return milliseconds(self.flops, forward, backward)

    def seconds(self, call: Callable, calls: int = 20) -> float:
        """Of one of so many calls, enqueued and waited for once."""
        calls = calls if self.device == "cuda" else 1
        call()
        self.wait()
        begun = time.perf_counter()
        for _ in range(calls):
            call()
        self.wait()
        return (time.perf_counter() - begun) / calls

    def wait(self) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()
