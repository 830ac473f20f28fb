"""The text kernel in torch, for the peer: gradients reach the encoder through it, as a LoRA on this model needs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from idiolect_adapters.text_kernel import TextKernel, shape_of


class DifferentiableKernel:
    """`TextKernel.outputs_of` for I known texts. Only how they look to the encoder may change; the rest of their
    likeness to the landmarks is computed once.
    """

    def __init__(self, kernel: TextKernel, texts: Sequence[tuple[str, str]]) -> None:
        views = kernel.lens.views(np.zeros((len(texts), len(kernel.lens.mean_H)), np.float32), texts)
        self._letters_I_M = _tensor((views.letters_N_V @ kernel.letters_M_V.T).toarray())
        self._surface_I_M = _tensor(views.surface_N_S @ kernel.surface_M_S.T)
        self._same_I_M = _tensor(views.prompt_N[:, None] == kernel.prompt_M[None, :])
        self._extra_I_O = _tensor(kernel.memory.look_up(texts))
        self._mean_H, self._landmark_M_H = _tensor(kernel.lens.mean_H), _tensor(kernel.landmark_M_H)
        self._weight_M_O = _tensor(kernel.weight_M_O)
        self._shapes = [shape_of(theta_A.astype(np.float64)) for theta_A in kernel.theta_O_A]

    def outputs_of(self, pooled_N_H: torch.Tensor, rows_N: torch.Tensor) -> torch.Tensor:
        """[N, O] of the texts `rows_N`, whose encoder features are `pooled_N_H`."""
        centred = pooled_N_H - self._mean_H
        meaning_N_H = centred / centred.norm(dim=1, keepdim=True).clamp(min=1e-9)
        cosine_N_M = meaning_N_H @ self._landmark_M_H.T
        letters, surface, same = self._letters_I_M[rows_N], self._surface_I_M[rows_N], self._same_I_M[rows_N]
        outputs = []
        for output, (a, width) in enumerate(self._shapes):
            kernel_N_M = (a[0] + a[1] * same) * torch.exp((cosine_N_M - 1.0) / width**2)
            kernel_N_M = kernel_N_M + (a[2] + a[3] * same) * letters + a[4] * surface + a[5] * same
            outputs.append(kernel_N_M @ self._weight_M_O[:, output])
        return torch.stack(outputs, dim=1) + self._extra_I_O[rows_N]


def _tensor(array: object) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
