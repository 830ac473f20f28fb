"""Domain adapters that reach into the backbone: a head and a LoRA on the last layers, private for one whole subject.

First the head, as in `domain.py`; then the inner layers, while the head stays what it was released as. Trained together
they would multiply, noise with noise. What is trained of the inner layers lies between two frozen factors for the same
reason (inner_layers.py).

All comparisons of a subject form one contribution over all trained numbers: their gradients are averaged over the
subject's own comparisons and clipped as one row. Of a global model with a text kernel only the encoder's own features
move, which neither its reward nor its user directions read: the user part of every score stays what it was, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from scipy.special import expit

from idiolect.errors import ConfigurationError, InvalidInputError
from idiolect.privacy.events import check_sample_rate, is_positive
from idiolect_adapters.lora.proof import PROBES
from idiolect_adapters.lora.trained import HEAD_B
from idiolect_adapters.preference import PreferenceModel
from idiolect_adapters.training.clip_noise import (
    NoiseSource,
    add_gaussian_noise,
    check_clip_norm,
    check_noise_multiplier,
    clip_rows,
)
from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.domain import COUNT_RELEASES, SubjectComparisons, noisy_count, subject_descent
from idiolect_adapters.training.inner_layers import InnerLayers, adapted_layers, attached
from idiolect_adapters.training.sampling import poisson_sample

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Progress = Callable[[int, int], None]

MAX_STEPS, MAX_LAYERS, MAX_RANK = 200, 1_000, 256
# Chosen on public people (deploy/decisions/0024-inner-layers-of-domains.md). A subject's gradient is clipped at CLIPPED
# times that of the score of a text as sensitive as the probes. If everybody agreed, a step would move the score of such
# a text by REACH, but the cores (in shares of the layers' own weights) by no more than FARTHEST.
CLIPPED, REACH, FARTHEST = 0.25, 1.0, 5.0


@dataclass(frozen=True, slots=True)
class LoraOptions:
    """Public: chosen before anything is read."""

    layers: int
    rank: int = 8
    steps: int = 12

    def __post_init__(self) -> None:
        for name, most in (("layers", MAX_LAYERS), ("rank", MAX_RANK), ("steps", MAX_STEPS)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise InvalidInputError(
                    f"{name} {value!r} is not usable.", mend=f"Use a whole number from 1 to {most:,}."
                )

    def releases(self, head: Recipe) -> int:
        """What the ledger is charged for: the count of subjects, which reads everybody, and every step."""
        return COUNT_RELEASES + head.steps + self.steps


@dataclass(frozen=True, slots=True)
class Steps:
    """Of the inner layers. `clip_norm` bounds one subject's gradient of everything that is trained."""

    clip_norm: float
    learning_rate: float
    steps: int

    def __post_init__(self) -> None:
        check_clip_norm(self.clip_norm)
        if not is_positive(self.learning_rate):
            raise InvalidInputError(f"learning rate {self.learning_rate!r} is not usable.", mend="Use one above 0.")


@dataclass(frozen=True, slots=True)
class SubjectTexts:
    """C comparisons of S subjects (`subject_C` in 0..S-1) among I (prompt, text) pairs, and what the bare model says
    of those: scores and domain directions."""

    subjects: int
    texts: Sequence[tuple[str, str]]
    score_I: FloatArray
    directions_I_M: FloatArray
    subject_C: IntArray
    chosen_C: IntArray
    rejected_C: IntArray
    weights_C: FloatArray

    def comparisons(self) -> SubjectComparisons:
        """As the head reads them."""
        chosen_C, rejected_C = self.chosen_C, self.rejected_C
        return SubjectComparisons(
            self.subjects,
            self.subject_C,
            self.directions_I_M[chosen_C] - self.directions_I_M[rejected_C],
            self.score_I[chosen_C] - self.score_I[rejected_C],
            self.weights_C,
        )


def train_domain_lora(
    model: PreferenceModel,
    data: SubjectTexts,
    options: LoraOptions,
    noise_multiplier: float,
    noise: NoiseSource,
    *,
    sample_rate: float = 1.0,
    progress: Progress | None = None,
) -> dict[str, NDArray[np.float32]]:
    """The tensors of one adapter: `lora/trained.py` makes a LoRA of them.

    The ledger must hold a reservation for `options.releases(head recipe)` releases at `noise_multiplier`, unit subject,
    of which COUNT_RELEASES read everybody and the others a sample. `noise_multiplier` 0 is training without privacy,
    for benchmarks only. Raises ConfigurationError as `check_trainable`.
    """
    check_noise_multiplier(noise_multiplier), check_sample_rate(sample_rate)  # before anything is read
    check_trainable(model, options)
    head = model.recipes.domain
    count = sample_rate * noisy_count(data.subjects, noise_multiplier, noise)
    head_M = subject_descent(data.comparisons(), head, count, noise_multiplier, noise, sample_rate)
    head_M = head_M.astype(np.float32).astype(np.float64)  # as it is published
    readout_H = head_M @ model.head.domain_basis_M_F[:, : model.backbone.hidden_size]
    tokens = model.backbone.tokenize([*data.texts, *PROBES])
    with attached(model.backbone, tokens, layers=options.layers, rank=options.rank) as inner:
        fixed_I = data.score_I + data.directions_I_M @ head_M
        text_gradients = _TextGradients(inner, readout_H, fixed_I, head.clip_norm)

        def gradients(batch_S: NDArray[np.bool_]) -> FloatArray:
            return subject_gradients(data, *text_gradients.now(), batch_S)

        steps = Steps(head.clip_norm, text_gradients.learning_rate, options.steps)
        move = text_gradients.move
        noisy_subject_steps(
            gradients, move, data.subjects, steps, count, noise_multiplier, noise, sample_rate, progress
        )
        return {HEAD_B: head_M[None, :].astype(np.float32)} | inner.tensors()


def check_trainable(model: PreferenceModel, options: LoraOptions) -> None:
    """Raises ConfigurationError if the encoder has no such layers, or if not only domain directions read its features:
    everybody's personal part would change with them."""
    adapted_layers(model.backbone, options.layers)
    hidden = model.backbone.hidden_size
    if model.head.reward_F[:hidden].any() or model.head.user_basis_K_F[:, :hidden].any():
        raise ConfigurationError(
            "this global model's user directions read the encoder's features, which inner layers would move.",
            mend="Train the head only, or inner layers on a global model that was trained on declared public data.",
        )


class _TextGradients:
    """The score of every text and its gradient, in units in which one clip norm fits the head and the inner layers.

    The units come from the released head and from PROBES, so they are public. What the cores are moved by, and all
    that they depend on, is what `move` was given.
    """

    def __init__(self, inner: InnerLayers, readout_H: FloatArray, fixed_I: FloatArray, clip_norm: float) -> None:
        self._inner, self._readout_H, self._fixed_I = inner, readout_H, fixed_I
        self._first = inner.gradients(readout_H)
        texts = len(fixed_I)
        typical = float(np.median(np.linalg.norm(self._first[1][texts:].astype(np.float64), axis=1)))
        self._unit = clip_norm / (CLIPPED * max(typical, 1e-9))
        # Of a text as sensitive as the probes; its gradient in these units is clip_norm / CLIPPED long.
        self.learning_rate = min(REACH * CLIPPED / clip_norm**2, FARTHEST / (self._unit * clip_norm))
        self._before_I = self._first[0][:texts]
        self._at_start = True

    def now(self) -> tuple[FloatArray, NDArray[np.float32]]:
        read_I, gradient_I_D = self._first if self._at_start else self._inner.gradients(self._readout_H)
        texts = len(self._fixed_I)
        return self._fixed_I + read_I[:texts] - self._before_I, gradient_I_D[:texts] * np.float32(self._unit)

    def move(self, step_D: FloatArray) -> None:
        self._inner.move(-self._unit * step_D)
        self._at_start = False


def noisy_subject_steps(
    gradients: Callable[[NDArray[np.bool_]], FloatArray],
    descend: Callable[[FloatArray], None],
    subjects: int,
    recipe: Steps,
    count: float,
    noise_multiplier: float,
    noise: NoiseSource,
    sample_rate: float = 1.0,
    progress: Progress | None = None,
) -> None:
    """The mechanism: all that `descend` [D] ever learns of people. `gradients(batch)` [subjects in it, D] holds one row
    of each, however long. `count`, the expected size of a sample, must be public or released before.
    """
    check_noise_multiplier(noise_multiplier), check_sample_rate(sample_rate)
    for step in range(recipe.steps):
        batch_S = poisson_sample(subjects, sample_rate)
        sum_D = clip_rows(gradients(batch_S), recipe.clip_norm).sum(axis=0)
        if noise_multiplier > 0:
            sum_D = add_gaussian_noise(
                sum_D, noise_multiplier=noise_multiplier, clip_norm=recipe.clip_norm, noise=noise
            )
        descend(recipe.learning_rate * sum_D / count)
        if progress is not None:
            progress(step + 1, recipe.steps)


def subject_gradients(
    data: SubjectTexts, score_I: FloatArray, gradient_I_D: NDArray[np.float32], batch_S: NDArray[np.bool_]
) -> FloatArray:
    """[subjects in the batch, D]: the gradient of each one's mean loss, before any clipping.

    A score's gradient is the same whoever reads the text; what differs by subject is how much of it they pull.
    """
    comparisons = data.comparisons()
    margin_C = score_I[data.chosen_C] - score_I[data.rejected_C]
    pull_C = comparisons.shares() * expit(-margin_C)
    subject_2C = np.tile(data.subject_C, 2)
    text_2C = np.concatenate([data.chosen_C, data.rejected_C])
    shape = (data.subjects, len(score_I))
    pull_S_I = scipy.sparse.csr_matrix((np.concatenate([-pull_C, pull_C]), (subject_2C, text_2C)), shape)
    rows_S_D: FloatArray = pull_S_I[batch_S] @ gradient_I_D.astype(np.float64)
    return rows_S_D
