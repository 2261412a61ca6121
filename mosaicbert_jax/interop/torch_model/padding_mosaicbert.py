"""Where the real tokens of a batch are, and what attention adds to its scores by position.

Shape letters: B rows, L row length, N real tokens, H heads.
"""

import math

import torch


def alibi_slopes(heads: int) -> list[float]:
    """A slope a head (Press et al., 2022, arXiv:2108.12409).

    For a power of two 2^(-8 i / heads), i = 1 … heads. Otherwise those of the power of two below,
    and then every other one of the power of two above.
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    if power == heads:
        return slopes
    return slopes + alibi_slopes(2 * power)[0::2][: heads - power]


class Padding:
    """Takes the padding out of a batch, and puts zeros back in its place.

    Where nothing is masked, and while a program is traced for export or compilation (which needs
    shapes that do not depend on values), all B·L tokens are taken for real, so that N = B·L.
    """

    def __init__(self, attention_mask_BL: torch.Tensor | None, shape: torch.Size):
        self.shape = shape
        self.mask_BL = None if attention_mask_BL is None else attention_mask_BL != 0
        self.indices_N = None
        if self.mask_BL is None or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return
        if self.mask_BL.all():
            self.mask_BL = None
        else:
            self.indices_N = self.mask_BL.flatten().nonzero().squeeze(-1)

    def remove(self, x_BL: torch.Tensor) -> torch.Tensor:
        """(B, L, …) to (N, …)."""
        x = x_BL.flatten(0, 1)
        return x if self.indices_N is None else x.index_select(0, self.indices_N)

    def restore(self, x_N: torch.Tensor) -> torch.Tensor:
        """(N, …) to (B, L, …), zero on padding."""
        if self.indices_N is not None:
            whole = x_N.new_zeros(self.shape[0] * self.shape[1], *x_N.shape[1:])
            x_N = whole.index_copy(0, self.indices_N, x_N)
        return x_N.unflatten(0, self.shape)

    def first_columns(self) -> torch.Tensor | int:
        """(B,) columns of the first real tokens, wherever the padding is."""
        return 0 if self.mask_BL is None else self.mask_BL.int().argmax(dim=1)


def attention_bias(padding: Padding, heads: int, like: torch.Tensor) -> torch.Tensor:
    """-slope · |i - j|, and as good as -inf where key j is padding: (1 or B, H, L, L).

    Not -inf itself: a row of the batch without a real token would come out as NaN.
    """
    position_L = torch.arange(padding.shape[1], device=like.device)
    distance_LL = (position_L[:, None] - position_L[None, :]).abs()
    slopes_H = torch.tensor(alibi_slopes(heads), device=like.device)
    bias_1HLL = (-slopes_H[:, None, None] * distance_LL)[None].to(like.dtype)
    if padding.mask_BL is None:
        return bias_1HLL
    return bias_1HLL.masked_fill(~padding.mask_BL[:, None, None, :], torch.finfo(like.dtype).min)
