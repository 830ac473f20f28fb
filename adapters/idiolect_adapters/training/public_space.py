"""The directions that a private global model is written in, chosen from public texts and models alone.

Features of a text are centred and measured in D directions, each of unit variance over public texts: what the text
kernel of the model before says, where there is one, and principal directions of the encoder's features and the counts.
So is everything that a private training takes as given: how steep a typical comparison is, which tastes to expect, and
where to clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from idiolect.errors import InvalidInputError
from idiolect.signals.comparison import Item
from idiolect.signals.data import Comparisons
from idiolect_adapters.basis import principal_directions
from idiolect_adapters.preference import Head, join_features, project_features
from idiolect_adapters.text_kernel import TextKernel
from idiolect_adapters.training.descent import Recipe
from idiolect_adapters.training.pairs import groups
from idiolect_adapters.training.tuning import typical_curvature

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

DIRECTIONS = 48
MIN_TEXTS = 2 * DIRECTIONS
PUBLIC_PAIRS = 20_000

# Chosen on training people of Polis, as public data: deploy/decisions/0013-private-global-model.md.
CLIP_SHARE = 0.25  # of the gradient of a typical comparison, since a subject's are averaged
CAUTION = 4.0  # times the curvature of public pairs: the texts that people judge may differ more than public ones do
PRIOR, STEPS = 0.02, 12
TASTE = 0.5  # variance of all tastes together where no model before says it


@dataclass(frozen=True, slots=True)
class PublicSpace:
    """z = directions (features - mean), on top of the margins of `before`, which is None for a first model."""

    before: Head | None
    mean_F: NDArray[np.float32]
    directions_D_F: NDArray[np.float32]
    curvature_D_D: FloatArray  # of a typical comparison
    expected_D_D: FloatArray  # covariance of tastes

    @property
    def kernel(self) -> TextKernel | None:
        return None if self.before is None else self.before.kernel

    @property
    def recipe(self) -> Recipe:
        """For one subject."""
        clip_norm = max(CLIP_SHARE * float(np.sqrt(np.trace(self.curvature_D_D))), 1e-3)
        return Recipe(clip_norm, PRIOR, STEPS, CAUTION * self.curvature_D_D)

    def project(self, features_N_F: NDArray[np.float32]) -> tuple[FloatArray, FloatArray]:
        """(score under the model before [N], z [N, D])."""
        no_domain = np.zeros((0, len(self.mean_F)), np.float32)
        projected_N_P = project_features(
            features_N_F, Head(self.mean_F, self._reward(), self.directions_D_F, no_domain, self.kernel)
        )
        return projected_N_P[:, 0], projected_N_P[:, 1:]

    def _reward(self) -> NDArray[np.float32]:
        return np.zeros_like(self.mean_F) if self.before is None else self.before.reward_F


def public_space(items: Sequence[Item], pooled_I_H: NDArray[np.float32], before: Head | None) -> PublicSpace:
    """`items` are public, `pooled_I_H` the encoder's features of them; `before` is a model that was released."""
    if len(items) < MIN_TEXTS:
        raise InvalidInputError(
            f"{len(items)} public texts are too few to choose {DIRECTIONS} directions from.",
            mend=f"Import a data set of at least {MIN_TEXTS} texts with --public.",
        )
    kernel = None if before is None else before.kernel
    features_I_F = join_features(pooled_I_H, [(item.prompt, item.text) for item in items], kernel)
    mean_F = features_I_F.mean(axis=0) if before is None else before.mean_F
    plain = features_I_F.shape[1] - (0 if kernel is None else kernel.outputs)
    directions_D_F = _directions(features_I_F, plain)
    space = PublicSpace(before, mean_F.astype(np.float32), directions_D_F, np.eye(DIRECTIONS), np.eye(DIRECTIONS))
    score_I, z_I_D = space.project(features_I_F)
    pairs = public_pairs(items)
    margin_C = score_I[pairs.chosen_C] - score_I[pairs.rejected_C]
    curvature_D_D = typical_curvature(z_I_D[pairs.chosen_C] - z_I_D[pairs.rejected_C], margin_C)
    return PublicSpace(before, space.mean_F, directions_D_F, curvature_D_D, _expected(before, features_I_F, z_I_D))


def public_pairs(items: Sequence[Item]) -> Comparisons:
    """PUBLIC_PAIRS random pairs of two texts for one prompt, each of a person of its own; of any two texts where hardly
    any prompt has two. Which is the better one is not known, and never used."""
    rng = np.random.default_rng(0)
    group_I = groups(items)
    first, second = rng.integers(0, len(items), (2, 50 * PUBLIC_PAIRS))
    different = first != second
    comparable = different & (group_I[first] == group_I[second])
    kept = np.flatnonzero(comparable if comparable.sum() >= MIN_TEXTS else different)[:PUBLIC_PAIRS]
    person_C, weight_C = np.arange(len(kept), dtype=np.int32), np.ones(len(kept), np.float32)
    return Comparisons(person_C, first[kept].astype(np.int32), second[kept].astype(np.int32), weight_C)


def _directions(features_I_F: NDArray[np.float32], plain: int) -> NDArray[np.float32]:
    """[DIRECTIONS, F]: what is behind the `plain` features each for itself, then principal directions of those."""
    outputs = features_I_F.shape[1] - plain
    centred_I_F = features_I_F - features_I_F.mean(axis=0)
    directions_D_F = np.zeros((DIRECTIONS, features_I_F.shape[1]), np.float32)
    spread_O = np.maximum(centred_I_F[:, plain:].std(axis=0), 1e-6)
    directions_D_F[:outputs, plain:] = np.diag(1.0 / spread_O)
    directions_D_F[outputs:, :plain] = principal_directions(centred_I_F[:, :plain], DIRECTIONS - outputs)
    return directions_D_F


def _expected(before: Head | None, features_I_F: NDArray[np.float32], z_I_D: FloatArray) -> FloatArray:
    """Tastes are N(0, I) in the user directions of the model before; without one, likelier along what tells texts
    apart most."""
    if before is None:
        share_D = 1.0 / np.arange(1, DIRECTIONS + 1)
        return np.diag(TASTE * share_D / share_D.sum())
    no_domain = np.zeros((0, len(before.mean_F)), np.float32)
    taste_I_K = project_features(
        features_I_F, Head(before.mean_F, before.reward_F, before.user_basis_K_F, no_domain, before.kernel)
    )[:, 1:]
    weights_D_K = np.linalg.lstsq(z_I_D - z_I_D.mean(axis=0), taste_I_K - taste_I_K.mean(axis=0), rcond=None)[0]
    expected_D_D: FloatArray = weights_D_K @ weights_D_K.T
    return expected_D_D
