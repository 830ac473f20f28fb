"""Memory for what plans gather, used again.

Fresh memory costs five times the copy itself: the system zeroes it page by page. A plan holds its buffers as long as it
lives, and they come back when it is gone.
"""

from __future__ import annotations

from collections import deque

import torch

KEPT = 4


class Buffers:
    """Without a lock: a plan may end in a garbage collection, in the middle of anything. At most KEPT idle buffers, in
    all dtypes together."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._idle: deque[torch.Tensor] = deque(maxlen=KEPT)

    def take(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        """A flat buffer of at least `size` numbers, with anything in them."""
        try:
            buffer = self._idle.pop()
        except IndexError:
            return torch.empty(size, dtype=dtype, device=self._device)
        fits = buffer.dtype == dtype and len(buffer) >= size
        return buffer if fits else torch.empty(size, dtype=dtype, device=self._device)

    def give_back(self, buffers: list[torch.Tensor]) -> None:
        self._idle.extend(buffers)
