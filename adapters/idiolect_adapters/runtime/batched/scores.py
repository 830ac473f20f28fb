"""Scores of many texts with a stack each: batches of one padded length, so hardly any padding is computed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from idiolect_adapters.backbone import Tokens, length_batches
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
    for length, rows in length_batches(tokens):
        plan = runtime.plan([stacks[row] for row in rows])
        ordered = [rows[position] for position in plan.order]
        with runtime.running(plan):
            scores = model([tokens.ids[row] for row in ordered], beside_N_S[ordered], length)
        scores_N[ordered] = scores.float().cpu()
    return scores_N
