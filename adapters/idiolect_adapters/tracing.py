"""What an encoder makes of padded texts, as one call that runs its layers without the interpreter in between.

A server's other threads take the interpreter's lock whenever an operation of a layer is over, and give it back
milliseconds later: beside one busy thread a forward of a hundred operations takes tens of times as long as alone. What
was traced gives the lock up once (deploy/decisions/0045-a-forward-in-one-call.md).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.utils import logging as transformers_logging

from idiolect_adapters.padding import LENGTH_STEP

# Of [3, N, L]: token ids, which of them are there, and which of them are pooled. Gives features [N, h], float32.
Read = Callable[[torch.Tensor], torch.Tensor]


def pool(hidden_N_L_H: torch.Tensor, pooled_N_L: torch.Tensor) -> torch.Tensor:
    """[N, h]: the mean over those tokens of each text that are pooled."""
    weights_N_L_1 = pooled_N_L.unsqueeze(-1).to(hidden_N_L_H.dtype)
    pooled_N_H: torch.Tensor = (hidden_N_L_H * weights_N_L_1).sum(1) / weights_N_L_1.sum(1)
    return pooled_N_H.float()


class Reading(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, padded_3_N_L: torch.Tensor) -> torch.Tensor:
        ids_N_L, mask_N_L, pooled_N_L = padded_3_N_L
        return pool(self.encoder(input_ids=ids_N_L, attention_mask=mask_N_L).last_hidden_state, pooled_N_L)


@torch.inference_mode()
def traced(encoder: nn.Module, longest: int) -> Read | None:
    """On the CPU, of an encoder that is not changed any more. None where it can't be traced, or where a forward of any
    size that is tried gives other bits than the encoder itself: some choose what to compute by what they are given.

    `longest`: of texts, in tokens.
    """
    if next(encoder.parameters()).device.type != "cpu":
        return None
    plain = Reading(encoder.eval())
    try:
        with _quietly():
            trace: Any = torch.jit.trace
            found: Read = trace(plain, _texts(encoder, 2, 2 * LENGTH_STEP), check_trace=False)
            same = all(torch.equal(found(texts), plain(texts)) for texts in _tried(encoder, longest))
    except Exception:  # whatever a model does that can't be traced
        return None
    return found if same else None


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what torch says of its plans and of what might depend on the input, and transformers of parts of a model
    that only a trace looks at."""
    verbosity = transformers_logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers_logging.set_verbosity_error()
        try:
            yield
        finally:
            transformers_logging.set_verbosity(verbosity)


def _tried(encoder: nn.Module, longest: int) -> list[torch.Tensor]:
    sizes = [(1, longest), (1, LENGTH_STEP), (2, 3 * LENGTH_STEP), (5, 2 * LENGTH_STEP), (7, 5 * LENGTH_STEP)]
    return [_texts(encoder, n, min(length, longest), full=full) for n, length in sizes for full in (False, True)]


def _texts(encoder: nn.Module, n: int, length: int, *, full: bool = False) -> torch.Tensor:
    """Made-up texts of different lengths, but for `full`, and all tokens pooled but the first."""
    config: Any = encoder.config
    places = torch.arange(length)
    lengths = torch.full((n,), length) if full else length - torch.arange(n) % (length // 2)
    mask_N_L = (places < lengths[:, None]).long()
    ids_N_L = (7 + 31 * torch.arange(n * length).reshape(n, length)) % int(config.vocab_size)
    return torch.stack([ids_N_L * mask_N_L, mask_N_L, mask_N_L * (places > 0)])
