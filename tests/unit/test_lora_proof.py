"""A load proof holds where the adapter does what it did, and only there."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from idiolect.errors import CorruptArtifactError
from idiolect_adapters.lora.proof import PROBES, RELATIVE_STEP, LoadProof, check_proof, prove
from idiolect_adapters.lora.reward_model import RewardModel, surface_of
from idiolect_adapters.lora.spec import LoraAdapter
from idiolect_adapters.runtime.batched.forward import BatchedRuntime
from idiolect_adapters.runtime.batched.plan import Applied
from idiolect_adapters.runtime.batched.scores import score_rows
from lora_samples import random_adapter, reward_model

BARE, ADAPTED = [0.1, -2.0, 3.0, 0.0], [0.2, -2.5, 3.0, 1e-9]
DIGEST = "0" * 64


def probe(model: RewardModel, adapter: LoraAdapter) -> tuple[list[float], list[float]]:
    """Scores of the probes without and with the adapter."""
    runtime = BatchedRuntime(model)
    applied = [Applied(runtime.residents.add(adapter))]
    tokens, surface = model.backbone.tokenize(PROBES), surface_of([text for _, text in PROBES])
    both = [score_rows(runtime, model, tokens, surface, [stack] * len(PROBES)).tolist() for stack in ([], applied)]
    return both[0], both[1]


def test_a_proof_reproduces_on_the_same_model_and_not_on_another(tiny_bert: Path) -> None:
    model = reward_model(tiny_bert)
    adapter = random_adapter(model, {"score": 3, "encoder.encoder.layer.0.output.dense": 2})
    proof = prove(DIGEST, *probe(model, adapter))
    check_proof(proof, DIGEST, *probe(reward_model(tiny_bert), adapter))
    with pytest.raises(CorruptArtifactError, match="does not score here"):
        check_proof(proof, DIGEST, *probe(reward_model(tiny_bert, seed=1), adapter))
    with pytest.raises(CorruptArtifactError, match="does not score here"):
        check_proof(proof, DIGEST, *probe(model, random_adapter(model, {"score": 3}, alpha=8.1)))


def test_an_adapter_that_changes_nothing_is_refused(tiny_bert: Path) -> None:
    model = reward_model(tiny_bert)
    adapter = random_adapter(model, {"score": 3})
    adapter.pairs["score"].B_O_R.zero_()
    with pytest.raises(CorruptArtifactError, match="changes nothing"):
        prove(DIGEST, *probe(model, adapter))


@given(
    st.lists(st.floats(-50, 50), min_size=1, max_size=8),
    st.integers(0, 7),
    st.floats(-0.45, 0.45),
)
def test_less_than_half_a_step_of_difference_is_tolerated_wherever_the_scores_lie(
    scores: list[float], place: int, share: float
) -> None:
    bare = [score + 1.0 for score in scores]
    proof = prove(DIGEST, bare, scores)
    moved = [score + share * proof.step * (index == place % len(scores)) for index, score in enumerate(scores)]
    assert proof.step > 0.0
    check_proof(proof, DIGEST, bare, moved)


@pytest.mark.parametrize("steps", [-1.0, -0.6, 0.6, 1.0, 1e9])
def test_more_than_half_a_step_of_difference_is_refused(steps: float) -> None:
    proof = prove(DIGEST, BARE, ADAPTED)
    moved = [ADAPTED[0] + steps * proof.step, *ADAPTED[1:]]
    with pytest.raises(CorruptArtifactError, match="does not score here"):
        check_proof(proof, DIGEST, BARE, moved)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_prove_nothing(score: float) -> None:
    with pytest.raises(CorruptArtifactError, match="not finite"):
        prove(DIGEST, BARE, [score, *ADAPTED[1:]])
    with pytest.raises(CorruptArtifactError, match="not finite"):
        check_proof(prove(DIGEST, BARE, ADAPTED), DIGEST, BARE, [score, *ADAPTED[1:]])


@pytest.mark.parametrize(("bare", "adapted"), [([], []), ([1.0], [1.0, 2.0])])
def test_a_probe_without_scores_proves_nothing(bare: Sequence[float], adapted: Sequence[float]) -> None:
    with pytest.raises(CorruptArtifactError, match="the probe gave"):
        prove(DIGEST, bare, adapted)


def _proof(**changes: object) -> LoadProof:
    return replace(prove(DIGEST, BARE, ADAPTED), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("proof", "word"),
    [
        (_proof(step=3 * 3.0 * RELATIVE_STEP), "tolerates too much"),
        (_proof(step=math.inf), "malformed"),
        (_proof(step=0.0), "malformed"),
        (_proof(step=math.nan), "malformed"),
        (_proof(offsets=(0, 0, 0)), "malformed"),
        (_proof(offsets=(0, 0, 0, 1 << 16)), "malformed"),
        (_proof(offsets=(0, 0, 0, 0)), "does not score here"),
        (_proof(digest="0" * 64), "does not score here"),
        (_proof(global_digest="1" * 64), "another global model"),
    ],
)
def test_a_proof_that_was_tampered_with_is_refused(proof: LoadProof, word: str) -> None:
    with pytest.raises(CorruptArtifactError, match=word):
        check_proof(proof, DIGEST, BARE, ADAPTED)


def test_a_proof_says_all_that_it_needs_in_json() -> None:
    proof = prove(DIGEST, BARE, ADAPTED)
    said = proof.to_json()
    assert LoadProof.from_json(json.loads(json.dumps(said))) == proof
    assert np.isclose(said["step"], 3.0 * RELATIVE_STEP)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "other"},
        {"step": "1"},
        {"step": None},
        {"offsets": [0.5]},
        {"offsets": "0"},
        {"digest": 7},
        {"more": 1},
    ],
)
def test_json_that_is_no_proof_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(CorruptArtifactError, match="malformed"):
        LoadProof.from_json(prove(DIGEST, BARE, ADAPTED).to_json() | changes)
