"""What changed between two adapters of one owner: in their weights, and in how they score texts.

Probe texts are public: a person's own texts would make the diff a release of private data that nobody charged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from idiolect_adapters.runtime.features import Projector

FloatArray = NDArray[np.float64]

# (prompt, text): a few ways of saying the same, along lines that people differ on.
PROBES: tuple[tuple[str, str], ...] = (
    ("How do I reset my router?", "Hold the button for ten seconds."),
    ("How do I reset my router?", "Of course, happy to help! Please hold the button for ten seconds, and it restarts."),
    ("How do I reset my router?", "1. Find the small button. 2. Hold it for ten seconds. 3. Wait for the green light."),
    ("Is my order late?", "It is. It left yesterday and arrives on Friday."),
    ("Is my order late?", "I am so sorry about this! Your parcel was delayed; we expect it on Friday."),
    ("What does this error mean?", "The file does not exist; check its path, for example with ls."),
)


@dataclass(frozen=True, slots=True)
class WeightsDiff:
    """`cosine` is None where one of the two is zero."""

    norm_a: float
    norm_b: float
    distance: float
    cosine: float | None


@dataclass(frozen=True, slots=True)
class ProbeScore:
    """What each adapter adds to the global score of one probe."""

    prompt: str
    text: str
    a: float
    b: float


def diff_weights(a_K: FloatArray, b_K: FloatArray) -> WeightsDiff:
    """Both scaled by alpha / rank, and of one length: written in the same basis."""
    norm_a, norm_b = float(np.linalg.norm(a_K)), float(np.linalg.norm(b_K))
    cosine = float(a_K @ b_K) / (norm_a * norm_b) if norm_a > 0.0 and norm_b > 0.0 else None
    return WeightsDiff(norm_a, norm_b, float(np.linalg.norm(a_K - b_K)), cosine)


def score_probes(
    model: Projector, personal: bool, a_K: FloatArray, b_K: FloatArray, probes: Sequence[tuple[str, str]]
) -> list[ProbeScore]:
    """Runs the model on the probes. `personal`: the weights are of user scope."""
    features_N_P = np.asarray(model.project(list(probes)))
    first = 1 if personal else 1 + model.user_rank
    directions_N_K = features_N_P[:, first : first + len(a_K)]
    scores = zip(probes, directions_N_K @ a_K, directions_N_K @ b_K, strict=True)
    return [ProbeScore(prompt, text, float(a), float(b)) for (prompt, text), a, b in scores]
