"""LoRAs of any layers over the global model: the same as one row and one adapter at a time, and nothing of it in rows
that have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idiolect.errors import CorruptArtifactError
from idiolect.registry.lora_layout import LoraLayout, LoraTarget
from idiolect_adapters.lora.reward_model import RewardModel
from idiolect_adapters.lora.spec import LoraAdapter
from idiolect_adapters.lora.trained import trained_adapter
from idiolect_adapters.preference import beside_features, project_features
from idiolect_adapters.runtime.batched.reference import run_row
from idiolect_adapters.runtime.loras import Lora, LoraEngine, LoraStack, clash
from idiolect_adapters.training.inner_layers import attached
from lora_samples import preference_model, random_adapter
from tiny_models import KINDS, WORDS, save_tiny

LAYERS = {"bert": "encoder.encoder.layer", "mpnet": "encoder.encoder.layer", "bloom": "encoder.h"}
PROJECTION = {
    "bert": "attention.self.query",
    "modernbert": "attn.Wqkv",
    "mpnet": "attention.attn.q",
    "bloom": "self_attention.query_key_value",
}
SAMPLES: tuple[dict[str, Any], ...] = (
    {"layers": {2: 8}},
    {"layers": {1: 3, 2: 9}, "rslora": True},
    {"layers": {0: 2}},
    {"layers": {}, "ranks": {"score": 3}},
    {"layers": {2: 4}, "ranks": {"score": 2}},
    {"layers": {1: 2}, "saved": ("score",)},
)


def layer(kind: str, number: int) -> str:
    return f"{LAYERS.get(kind, 'encoder.layers')}.{number}.{PROJECTION.get(kind, 'self_attn.q_proj')}"


class Trial:
    """The engine, and the slow way on a model of its own."""

    def __init__(self, kind: str = "bert", *, kernel: bool = True) -> None:
        folder = save_tiny(Path(mkdtemp()) / kind, kind, num_hidden_layers=3)
        self.kind = kind
        self.model, self.slow = preference_model(folder, kernel=kernel), preference_model(folder, kernel=kernel)
        self.engine = LoraEngine(self.model)
        self.reward = RewardModel.of(self.slow)
        self.adapters: list[LoraAdapter] = []
        self.loras: list[Lora] = []

    def add(self, sample: dict[str, Any], *, shared: bool = False) -> None:
        ranks = {layer(self.kind, number): rank for number, rank in sample["layers"].items()} | sample.get("ranks", {})
        options = {"rslora": sample.get("rslora", False), "saved": sample.get("saved", ())}
        adapter = random_adapter(self.reward, ranks, seed=len(self.adapters), **options)
        self.adapters.append(adapter)
        self.loras.append(self.engine.add(adapter, f"adapter {len(self.adapters)}", shared=shared))

    def stack(self, chosen: Sequence[tuple[int, float]]) -> LoraStack | None:
        return LoraStack(tuple((self.loras[n], strength) for n, strength in chosen)) if chosen else None

    def fast(self, pairs: Sequence[tuple[str, str]], rows: Sequence[Sequence[tuple[int, float]]]) -> np.ndarray:
        return self.engine.project(pairs, [self.stack(row) for row in rows])

    def slowly(self, pair: tuple[str, str], chosen: Sequence[tuple[int, float]]) -> np.ndarray:
        stack = [(self.adapters[number], strength) for number, strength in chosen]
        ids, backbone = self.slow.backbone.tokenize([pair]).ids, self.slow.backbone
        pooled = run_row(self.reward, stack, lambda: backbone.pooled(ids)).numpy()
        beside = beside_features(backbone.features([pair]), [pair], self.slow.head.kernel)
        features = np.concatenate([pooled, beside], axis=1)
        row = project_features(features, self.slow.head)[0]
        centred = torch.from_numpy(features - self.slow.head.mean_F)
        bare, moved = (run_row(self.reward, some, lambda: self.reward.score(centred)) for some in ((), stack))
        row[0] += float(moved - bare)
        return row


@cache
def trial(kind: str = "bert", kernel: bool = True) -> Trial:
    made = Trial(kind, kernel=kernel)
    for number, sample in enumerate(SAMPLES):
        made.add(sample, shared=number % 2 == 0)
    return made


strengths = st.sampled_from([1.0, 0.5, 0.01])
texts = st.lists(st.sampled_from(WORDS), min_size=0, max_size=30).map(" ".join)
pairs_of_texts = st.tuples(st.sampled_from(["", "how why", "question one two three"]), texts)
# No two of one stack replace `score`: only sample 5 does.
chosen_rows = st.lists(st.tuples(st.integers(0, 5), strengths), max_size=3, unique_by=lambda one: one[0])


@given(st.lists(st.tuples(pairs_of_texts, chosen_rows), max_size=12), st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_batch_gives_what_one_row_and_one_adapter_at_a_time_gives(
    batch: list[tuple[tuple[str, str], list[tuple[int, float]]]], kernel: bool
) -> None:
    made = trial("bert", kernel)
    found = made.fast([pair for pair, _ in batch], [row for _, row in batch])
    assert found.shape == (len(batch), 1 + made.model.user_rank + made.model.domain_rank)
    for (pair, row), fast in zip(batch, found, strict=True):
        np.testing.assert_allclose(fast, made.slowly(pair, row), rtol=1e-4, atol=1e-4)


@given(st.lists(st.tuples(pairs_of_texts, chosen_rows), min_size=1, max_size=10))
@settings(max_examples=20, deadline=None)
def test_a_rows_bits_depend_on_nobody_else_and_without_adapters_they_are_the_models(
    batch: list[tuple[tuple[str, str], list[tuple[int, float]]]],
) -> None:
    made = trial()
    found = made.fast([pair for pair, _ in batch], [row for _, row in batch])
    for (pair, row), together in zip(batch, found, strict=True):
        assert np.array_equal(made.fast([pair], [row])[0], together)
        if not row:
            assert np.array_equal(made.model.project([pair])[0], together)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_below_the_first_adapted_one_see_each_text_once(kind: str) -> None:
    made = Trial(kind)
    made.add({"layers": {2: 4}})
    made.add({"layers": {2: 4, 1: 2}})
    seen: dict[int, int] = {}

    def watch(number: int) -> Any:
        return lambda _module, _inputs, output: seen.update({number: len(output)})

    hooks = [
        RewardModel.of(made.model).get_submodule(layer(kind, number)).register_forward_hook(watch(number))
        for number in range(3)
    ]
    pairs = [("", "alpha beta"), ("", "gamma delta"), ("", "alpha beta"), ("", "gamma delta")]
    upper = [[(0, 1.0)], [(0, 1.0)], [], [(0, 0.5)]]
    found = made.fast(pairs, upper)
    assert seen == {0: 2, 1: 2, 2: 5}
    for pair, row, fast in zip(pairs, upper, found, strict=True):
        np.testing.assert_allclose(fast, made.slowly(pair, row), rtol=1e-4, atol=1e-4)
    deeper = made.fast(pairs, [[(1, 1.0)], [], [], []])
    assert seen == {0: 2, 1: 3, 2: 3}
    assert np.array_equal(deeper[1:], made.model.project(pairs[1:]))
    for hook in hooks:
        hook.remove()


def test_a_model_whose_layers_can_not_be_shared_reads_each_row_for_itself() -> None:
    """Bloom's layers are given slopes by text and head in one dimension."""
    made = Trial("bloom")
    assert made.engine._shares_layers
    made.add({"layers": {2: 4}, "ranks": {"score": 2}})
    pairs = [("", "alpha beta"), ("how", "gamma delta"), ("", "alpha beta"), ("", "")]
    rows = [[(0, 1.0)], [(0, 0.5)], [], []]
    for _ in range(2):
        found = made.fast(pairs, rows)
        assert not made.engine._shares_layers
        for pair, row, fast in zip(pairs, rows, found, strict=True):
            np.testing.assert_allclose(fast, made.slowly(pair, row), rtol=1e-4, atol=1e-4)
        assert np.array_equal(found[2:], made.model.project(pairs[2:]))


def test_before_the_first_lora_nothing_is_hooked_into_the_model() -> None:
    made = Trial()
    hooked = sum(len(module._forward_hooks) for module in made.model.backbone.encoder.modules())
    pairs = [("", "alpha beta")]
    assert np.array_equal(made.engine.project(pairs, [None]), made.model.project(pairs))
    assert sum(len(module._forward_hooks) for module in made.model.backbone.encoder.modules()) == hooked == 0


def test_memory_goes_with_the_last_who_holds_a_lora() -> None:
    made = Trial()
    made.add(SAMPLES[1])
    stack = made.stack([(0, 1.0)])
    assert made.engine.resident_bytes > 0
    made.loras.clear()
    made.engine.free_unused()
    pairs = [("", "alpha beta")]
    held = made.engine.project(pairs, [stack])  # somebody still computes with it
    assert not np.array_equal(held, made.model.project(pairs))
    del stack
    made.engine.free_unused()
    assert made.engine.resident_bytes == 0


@pytest.mark.parametrize(("rows", "most"), [(100, 12), (3, 3), (0.5, 1)])
def test_what_a_batch_copies_of_a_large_lora_is_bounded(
    rows: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row under a person's LoRA has a copy of it, so what one batch takes must not grow with LoRA and rows."""
    made = Trial()
    made.add(SAMPLES[1])
    pairs = [("", f"alpha {word}") for word in WORDS[:12]]
    whole = made.fast(pairs, [[(0, 1.0)]] * 12)
    stack, copied = made.stack([(0, 1.0)]), list[int]()
    assert stack is not None
    buffers = made.engine._runtime.residents.buffers
    take = buffers.take
    monkeypatch.setattr(buffers, "take", lambda size, dtype: (copied.append(4 * size), take(size, dtype))[1])
    monkeypatch.setattr("idiolect_adapters.runtime.loras.MOST_GATHERED_BYTES", rows * stack.gathered_bytes)
    assert np.array_equal(made.fast(pairs, [[(0, 1.0)]] * 12), whole)
    assert max(copied) == most * stack.gathered_bytes
    assert sum(copied) == 12 * stack.gathered_bytes


def test_texts_that_are_cached_under_one_stack_share_its_key() -> None:
    first, second, other = (trial().stack([(0, 1.0), (3, strength)]) for strength in (0.5, 0.5, 0.6))
    assert first is not None
    assert second is not None
    assert other is not None
    assert first.key is second.key
    assert first.key != other.key


def test_two_that_replace_the_same_layer_are_known_not_to_fit_together() -> None:
    made = Trial()
    made.add({"layers": {}, "saved": ("score",)})
    made.add({"layers": {1: 2}, "saved": ("score",)})
    made.add({"layers": {1: 2}})
    assert clash(made.loras[0], made.loras[1])
    assert not clash(made.loras[0], made.loras[2])


def layout_of(made: Trial, number: int) -> LoraLayout:
    spec = made.adapters[number].spec
    bare, proof = made.engine.prove(made.loras[number])
    targets = tuple(LoraTarget(name, spec.rank_pattern[name], spec.alpha_pattern[name]) for name in spec.targets)
    return LoraLayout(targets, spec.use_rslora, spec.modules_to_save, bare, proof)


def test_a_proof_holds_again_and_not_for_another_scale_or_another_model() -> None:
    made = Trial()
    made.add(SAMPLES[1])
    layout = layout_of(made, 0)
    made.engine.check(made.loras[0], layout)
    assert LoraLayout.from_json(layout.to_json()) == layout
    spec = made.adapters[0].spec
    louder = replace(made.adapters[0], spec=replace(spec, alpha_pattern=dict.fromkeys(spec.targets, 9.0)))
    with pytest.raises(CorruptArtifactError, match="does not score here as it did") as caught:
        made.engine.check(made.engine.add(louder, "louder", shared=False), layout)
    assert caught.value.code == "corrupt_artifact"
    made.model.head.reward_F[0] += 0.5
    elsewhere = LoraEngine(made.model)
    with pytest.raises(CorruptArtifactError, match="this machine does not compute") as caught:
        elsewhere.check(elsewhere.add(made.adapters[0], "same", shared=False), layout)
    assert caught.value.code == "probe_differs"


def test_an_adapter_that_changes_nothing_has_no_proof() -> None:
    made = Trial()
    adapter = random_adapter(made.reward, {layer("bert", 1): 2})
    pair = adapter.pairs[layer("bert", 1)]
    still = replace(adapter, pairs={layer("bert", 1): replace(pair, B_O_R=torch.zeros_like(pair.B_O_R))})
    with pytest.raises(CorruptArtifactError, match="changes nothing") as caught:
        made.engine.prove(made.engine.add(still, "still", shared=False))
    assert caught.value.code == "changes_nothing"


def test_what_the_private_training_trained_scores_as_it_did_in_training(tmp_path: Path) -> None:
    model = preference_model(save_tiny(tmp_path / "bert", "bert", num_hidden_layers=3), kernel=False)
    pairs = [("how", "alpha beta"), ("", "warm reply please thanks"), ("why", "")]
    rng, hidden, bare = np.random.default_rng(0), model.backbone.hidden_size, model.project(pairs)
    head_M = rng.normal(size=model.domain_rank).astype(np.float32)
    readout_H = model.head.reward_F[:hidden] + head_M @ model.head.domain_basis_M_F[:, :hidden]
    with attached(model.backbone, model.backbone.tokenize(pairs), layers=2, rank=3) as inner:
        before_I, _ = inner.gradients(readout_H)
        inner.move(rng.normal(size=inner.size))
        moved_I = inner.gradients(readout_H)[0] - before_I
        tensors = inner.tensors() | {"head.lora_B.weight": head_M[None, :]}
    expected = bare[:, 0] + bare[:, 1 + model.user_rank :] @ head_M + moved_I
    engine = LoraEngine(model)
    lora = engine.add(trained_adapter(model.head, tensors), "trained", shared=True)
    assert lora.first_layer == 1
    found = engine.project(pairs, [LoraStack(((lora, 1.0),))] * 3)[:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert not np.allclose(found, model.project(pairs)[:, 0], atol=1e-3)
