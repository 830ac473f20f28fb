"""The products themselves, on the rows of one block. Device and dtype are those of the tensors.

Layers see either tokens [n, T, I] or one vector per row [n, I] (a head). The latter are summed row by row: the kernels
for a single output round by the number of rows, and a row's bits must not depend on its neighbours.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def down(x_n_T_I: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
    """[n, T, R] or [n, R] of `A` [R, I] (one dense product) or [n, R, I] (each row its own)."""
    if x_n_T_I.ndim == 2:
        return (x_n_T_I.unsqueeze(1) * A).sum(-1)
    return functional.linear(x_n_T_I, A) if A.ndim == 2 else torch.bmm(x_n_T_I, A.mT)


def times_core(h_n_T_R: torch.Tensor, C_n_R_R: torch.Tensor) -> torch.Tensor:
    if h_n_T_R.ndim == 2:
        return (h_n_T_R.unsqueeze(1) * C_n_R_R).sum(-1)
    return torch.bmm(h_n_T_R, C_n_R_R.mT)


def add_up(y_n_T_O: torch.Tensor, h_n_T_R: torch.Tensor, B: torch.Tensor) -> None:
    """y += h B^T in place, with `B` [O, R] or [n, O, R]."""
    if y_n_T_O.ndim == 2:
        y_n_T_O += (h_n_T_R.unsqueeze(1) * B).sum(-1)
    elif B.ndim == 2:
        y_n_T_O.flatten(0, 1).addmm_(h_n_T_R.flatten(0, 1), B.mT)
    else:
        y_n_T_O.baddbmm_(h_n_T_R, B.mT)


def replace(
    y_n_T_O: torch.Tensor,
    x_n_T_I: torch.Tensor,
    W: torch.Tensor,
    b: torch.Tensor | None,
    strength_n: torch.Tensor | None,
) -> None:
    """y = W x + b in place, or so much of the way there as `strength_n` says."""
    whole = down(x_n_T_I, W)
    if b is not None:
        whole += b if b.ndim == 1 or whole.ndim == 2 else b.unsqueeze(1)
    if strength_n is None:
        y_n_T_O.copy_(whole)
    else:
        torch.lerp(y_n_T_O, whole, per_row(strength_n, whole), out=y_n_T_O)


def per_row(strength_n: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[n] as [n, 1, ...] for a tensor [n, ...]."""
    return strength_n.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1)).expand_as(like)
