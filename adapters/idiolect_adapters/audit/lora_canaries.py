"""The canaries of domains against the steps of inner-layer LoRA (unit: one subject).

What is attacked is the code that samples, clips, sums, adds noise, divides and steps. The gradients are those of a
linear score, at a millionth of the cost; that torch's are each subject's own is held against a plain loop by tests.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from idiolect_adapters.audit.canary import FloatArray, Mechanism
from idiolect_adapters.audit.domain_canaries import DOMAIN_CANARIES, DomainTraining, shipped_domain
from idiolect_adapters.training.clip_noise import NoiseSource
from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.domain import SubjectComparisons, mean_gradients, noisy_count
from idiolect_adapters.training.domain_lora import Steps, noisy_subject_steps

# It gives away the difference of two steps, which no learning rate makes of what a LoRA ends with.
NOT_FOR_LORA = "switching"


def steps_of_lora(data: SubjectComparisons, recipe: Recipe, multiplier: float, noise: NoiseSource) -> FloatArray:
    """With the recipe `summing` this ends where a domain's training does: at the sum of all steps over the count."""
    weights_K = np.zeros(data.differences_C_K.shape[1])

    def gradients(batch_S: NDArray[np.bool_]) -> FloatArray:
        return -mean_gradients(data, weights_K)[batch_S]

    def descend(step_K: FloatArray) -> None:
        weights_K[...] -= step_K

    steps = Steps(recipe.clip_norm, 1.0, recipe.steps)
    count = noisy_count(data.subjects, multiplier, noise)
    noisy_subject_steps(gradients, descend, data.subjects, steps, count, multiplier, noise)
    return weights_K


def shipped_lora() -> Mechanism[DomainTraining]:
    canaries = tuple(canary for canary in DOMAIN_CANARIES if canary.name != NOT_FOR_LORA)
    return replace(shipped_domain(), name="lora", train=steps_of_lora, canaries=canaries)
