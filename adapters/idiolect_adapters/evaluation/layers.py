"""Features from inside an encoder. Its last layer was trained to say what a text is about; how well it is written
shows more clearly in the layers before (UKPConvArg: two points of accuracy; deploy/decisions)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from idiolect_adapters.backbone import Backbone


@torch.inference_mode()
def inner_features(
    backbone: Backbone, texts: Sequence[str], progress: Callable[[int, int], None] | None = None
) -> NDArray[np.float32]:
    """[N, layers * H]: token means of the later half of the encoder's layers, without the last one."""
    tokens = backbone.tokenize([("", text) for text in texts])
    rows_of: list[NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(texts)
    done = 0
    for length, rows in backbone.padding.batches(tokens.ids):
        means = _means(backbone, [tokens.ids[row] for row in rows], length)
        for row, mean in zip(rows, means, strict=True):
            rows_of[row] = mean
        done += len(rows)
        if progress is not None:
            progress(done, len(texts))
    return np.stack(rows_of) if texts else np.zeros((0, backbone.hidden_size), np.float32)


def _means(backbone: Backbone, ids: Sequence[Sequence[int]], length: int) -> NDArray[np.float32]:
    ids_N_L = torch.zeros(len(ids), length, dtype=torch.long)
    mask_N_L = torch.zeros(len(ids), length, dtype=torch.long)
    for row, tokens in enumerate(ids):
        ids_N_L[row, : len(tokens)] = torch.tensor(tokens)
        mask_N_L[row, : len(tokens)] = 1
    device = backbone.device
    mask_N_L = mask_N_L.to(device)
    states: Any = backbone.encoder(
        input_ids=ids_N_L.to(device), attention_mask=mask_N_L, output_hidden_states=True
    ).hidden_states
    layers = len(states) - 1  # the first one is the embeddings
    inner = torch.stack(list(states[layers // 2 : layers]) or [states[-1]], dim=1).float()
    weights = mask_N_L[:, None, :, None].to(inner.dtype)
    means_N_X: NDArray[np.float32] = ((inner * weights).sum(2) / weights.sum(2)).flatten(1).cpu().numpy()
    return means_N_X
