"""Scores of many texts with a stack each: batches of one padded length, so hardly any padding is computed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from idiolect_adapters.backbone import Tokens
from idiolect_adapters.lora.reward_model import RewardModel
from idiolect_adapters.runtime.batched.forward import BatchedRuntime
from idiolect_adapters.runtime.batched.plan import Stack


@torch.inference_mode()
def score_rows(
    runtime: BatchedRuntime, model: RewardModel, tokens: Tokens, beside_N_S: torch.Tensor, stacks: Sequence[Stack]
) -> torch.Tensor:
    """Scores [N], in the order of `tokens`. A row has the same bits in any company; without an adapter, the bare
    model's."""
    scores_N = torch.empty(len(tokens))
    padding = model.backbone.padding
    for length, rows in padding.batches(tokens.ids):
        extra = padding.filler(len(rows), length)
        ids = [tokens.ids[row] for row in rows] + extra
        beside_B_S = torch.cat([beside_N_S[rows], beside_N_S.new_zeros(len(extra), beside_N_S.shape[1])])
        plan = runtime.plan([*(stacks[row] for row in rows), *([] for _ in extra)])
        order = list(plan.order)
        with runtime.running(plan):
            scores_B = model([ids[row] for row in order], beside_B_S[order], length).float().cpu()
        scores_N[rows] = scores_B[torch.argsort(torch.tensor(order))][: len(rows)]
    return scores_N
