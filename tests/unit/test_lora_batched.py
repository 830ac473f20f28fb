"""The batched forward: the same as one row at a time, the bare model's bits without an adapter, and no row sees
another's adapter.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from idiolect.errors import CorruptArtifactError, InvalidInputError, NotFoundError
from idiolect_adapters.backbone import Tokens
from idiolect_adapters.lora.reward_model import RewardModel
from idiolect_adapters.lora.spec import LoraAdapter, LoraPair, linear_shapes, uniform_spec
from idiolect_adapters.runtime.batched.forward import BatchedRuntime
from idiolect_adapters.runtime.batched.plan import Applied, Stack
from idiolect_adapters.runtime.batched.reference import run_row
from idiolect_adapters.runtime.batched.scores import score_rows
from idiolect_adapters.surface import NAMES
from lora_samples import random_adapter, reward_model
from tiny_models import KINDS, save_tiny

LAYER = "encoder.encoder.layer"
QUERY, KEY, VALUE = (f"{LAYER}.0.attention.self.{name}" for name in ("query", "key", "value"))
OUTPUT = f"{LAYER}.1.output.dense"
SAMPLES: tuple[dict[str, Any], ...] = (
    {"ranks": {QUERY: 8, VALUE: 8}},
    {"ranks": {QUERY: 8, VALUE: 8}},
    {"ranks": {QUERY: 1, KEY: 5, VALUE: 9, "score": 3}, "rslora": True},
    {"ranks": {OUTPUT: 33}},
    {"ranks": {"score": 2}},
    {"ranks": {VALUE: 17, OUTPUT: 2}, "saved": ("score",)},
    {"ranks": {}, "saved": (QUERY,)},
)
DENSE = ({"ranks": {QUERY: 8, VALUE: 8, "score": 4}}, {"ranks": {OUTPUT: 3}, "saved": (KEY,)})

Chosen = Sequence[tuple[int, float]]  # (number of the adapter, strength)


class World:
    """A tiny model, its runtime, and a few adapters in it: the last ones are shared."""

    def __init__(self, kind: str = "bert") -> None:
        folder = save_tiny(Path(mkdtemp()) / kind, kind)
        self.bare, self.model = reward_model(folder), reward_model(folder)
        self.runtime = BatchedRuntime(self.model)
        self.adapters: list[LoraAdapter] = []
        self.handles: list[Any] = []

    def add(self, adapter: LoraAdapter, *, shared: bool = False) -> int:
        self.adapters.append(adapter)
        self.handles.append(self.runtime.residents.add(adapter, shared=shared))
        return len(self.adapters) - 1

    def stacks(self, rows: Sequence[Chosen]) -> list[Stack]:
        return [[Applied(self.handles[number], strength) for number, strength in row] for row in rows]

    def scores(self, lengths: Sequence[int], rows: Sequence[Chosen]) -> torch.Tensor:
        tokens, surface = texts(lengths)
        return score_rows(self.runtime, self.model, tokens, surface, self.stacks(rows))

    def slow_scores(self, lengths: Sequence[int], rows: Sequence[Chosen]) -> torch.Tensor:
        tokens, surface = texts(lengths)
        scores = []
        for row, chosen in enumerate(rows):
            stack = [(self.adapters[number], strength) for number, strength in chosen]
            one = tokens.ids[row : row + 1]
            scores.append(run_row(self.bare, stack, lambda i=row, one=one: self.bare(one, surface[i : i + 1])))
        return torch.cat(scores) if scores else torch.empty(0)


def texts(lengths: Sequence[int]) -> tuple[Tokens, torch.Tensor]:
    """Row i has `lengths[i]` tokens, which depend on i alone."""
    ids = tuple(tuple((7 * row + 3 * at) % 60 for at in range(length)) for row, length in enumerate(lengths))
    generator = torch.Generator().manual_seed(0)
    return Tokens(ids), torch.rand(1000, len(NAMES), generator=generator)[: len(lengths)]


@cache
def world() -> World:
    made = World()
    for seed, sample in enumerate(SAMPLES):
        made.add(random_adapter(made.bare, **sample, seed=seed))
    for seed, sample in enumerate(DENSE):
        made.add(random_adapter(made.bare, **sample, seed=100 + seed), shared=True)
    return made


# Numbers 5, 6 and 8 replace layers, each another one.
ROWS = st.lists(
    st.tuples(
        st.integers(1, 40),
        st.lists(
            st.tuples(st.integers(0, len(SAMPLES) + len(DENSE) - 1), st.sampled_from([0.0, 0.25, 1.0])), max_size=4
        ).filter(lambda row: all([n for n, _ in row].count(number) <= 1 for number in (5, 6, 8))),
    ),
    max_size=9,
)


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_any_batch_is_what_one_row_at_a_time_gives(rows: list[tuple[int, Chosen]]) -> None:
    lengths, chosen = [length for length, _ in rows], [row for _, row in rows]
    fast, slow = world().scores(lengths, chosen), world().slow_scores(lengths, chosen)
    assert torch.allclose(fast, slow, rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(ROWS)
def test_rows_without_an_adapter_have_the_bits_of_the_bare_model(rows: list[tuple[int, Chosen]]) -> None:
    lengths, chosen = [length for length, _ in rows], [row for _, row in rows]
    fast, nobody = world().scores(lengths, chosen), world().scores(lengths, [[] for _ in rows])
    empty = [row for row, stack in enumerate(chosen) if not any(strength for _, strength in stack)]
    assert torch.equal(fast[empty], nobody[empty])


@settings(max_examples=40, deadline=None)
@given(ROWS, st.integers(0, 8))
def test_a_row_has_the_same_bits_alone_as_in_company(rows: list[tuple[int, Chosen]], place: int) -> None:
    if rows:
        place %= len(rows)
        lengths, chosen = [length for length, _ in rows], [row for _, row in rows]
        alone: list[Chosen] = [row if at == place else [] for at, row in enumerate(chosen)]
        assert torch.equal(world().scores(lengths, chosen)[place], world().scores(lengths, alone)[place])


def test_a_row_adds_its_adapters_up_in_the_same_order_whoever_comes_before_it() -> None:
    made = World()
    for seed, rank in enumerate((8, 16, 32)):
        made.add(random_adapter(made.bare, {QUERY: rank, OUTPUT: rank}, seed=seed))
    domain = made.add(random_adapter(made.bare, {QUERY: 8}, seed=9), shared=True)
    row = [(domain, 0.5), (0, 1.0), (1, 0.25), (2, 1.0)]
    alone = made.scores([20, 20], [[], row])
    for before in ([(2, 1.0)], [(1, 1.0)], [(2, 0.5), (1, 1.0)]):
        assert torch.equal(made.scores([20, 20], [before, row])[1], alone[1])


def test_ranks_that_are_padded_to_one_size_share_one_gather() -> None:
    made = World()
    for rank in (1, 3, 8):
        made.add(random_adapter(made.bare, {QUERY: rank}))
    assert made.runtime.residents.stats().families == 1
    made.add(random_adapter(made.bare, {QUERY: 9}))
    assert made.runtime.residents.stats().families == 2


@pytest.mark.parametrize("number", range(len(SAMPLES)))
def test_changing_one_adapter_changes_its_own_rows_and_no_bit_of_the_others(number: int) -> None:
    made = World()
    for seed, sample in enumerate(SAMPLES):
        made.add(random_adapter(made.bare, **sample, seed=seed))
    domain = made.add(random_adapter(made.bare, **DENSE[0], seed=100), shared=True)
    rows = [[(row % len(SAMPLES), 1.0), (domain, 0.5)] for row in range(21)] + [[]]
    lengths = [20] * len(rows)
    before = made.scores(lengths, rows)
    made.runtime.residents.remove(made.handles[number])
    ranks = {**SAMPLES[number]["ranks"], f"{LAYER}.0.intermediate.dense": 40}
    made.handles[number] = made.runtime.residents.add(random_adapter(made.bare, ranks, seed=77, size=0.5))
    after = made.scores(lengths, rows)
    theirs = torch.tensor([bool(row) and row[0][0] == number for row in rows])
    assert torch.equal(before[~theirs], after[~theirs])
    assert bool((before[theirs] != after[theirs]).all())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_backbone_takes_adapters_on_all_its_layers(kind: str) -> None:
    made = World(kind)
    names = [name for name in linear_shapes(made.bare) if "pooler" not in name]
    for seed in range(3):
        ranks = {name: 1 + (seed + place) % 9 for place, name in enumerate(names)}
        made.add(random_adapter(made.bare, ranks, seed=seed, size=0.1), shared=seed == 2)
    rows: list[Chosen] = [[], [(0, 1.0)], [(1, 0.5), (2, 1.0)], [(2, 1.0)], [(0, 1.0), (1, 1.0)], []]
    lengths = [5, 30, 30, 17, 30, 30]
    assert torch.allclose(made.scores(lengths, rows), made.slow_scores(lengths, rows), rtol=1e-4, atol=1e-5)
    bare = made.scores(lengths, [[] for _ in rows])
    assert torch.equal(made.scores(lengths, rows)[[0, 5]], bare[[0, 5]])
    assert torch.equal(bare, score_rows(BatchedRuntime(made.bare), made.bare, *texts(lengths), [[]] * len(rows)))


@pytest.mark.parametrize("count", [1, 500])
def test_one_row_and_five_hundred_rows_of_their_own_adapters(count: int) -> None:
    made = World()
    for seed in range(count):
        made.add(random_adapter(made.bare, {QUERY: 2, VALUE: 2, "score": 1}, seed=seed))
    rows = [[((3 * row) % count, 1.0)] for row in range(count)]
    lengths = [16] * count
    assert torch.allclose(made.scores(lengths, rows), made.slow_scores(lengths, rows), rtol=1e-4, atol=1e-5)
    assert made.runtime.residents.stats().members == count


def bf16_world() -> World:
    made = World()
    for model in (made.bare, made.model):
        model.encoder.to(torch.bfloat16)
    made.runtime = BatchedRuntime(made.model)
    return made


def test_a_bfloat16_encoder_under_a_float32_head() -> None:
    made = bf16_world()
    made.add(random_adapter(made.bare, {QUERY: 8, VALUE: 3, OUTPUT: 4, "score": 2}, size=0.1))
    made.add(random_adapter(made.bare, {QUERY: 2}, seed=1, size=0.1), shared=True)
    rows: list[Chosen] = [[], [(0, 1.0)], [(0, 0.5), (1, 1.0)], [(1, 1.0)], []]
    fast = made.scores([24] * 5, rows)
    assert torch.allclose(fast, made.slow_scores([24] * 5, rows), rtol=0.03, atol=0.03)
    assert torch.equal(fast[[0, 4]], made.scores([24] * 5, [[]] * 5)[[0, 4]])
    assert not torch.equal(fast[1:4], made.scores([24] * 5, [[]] * 5)[1:4])


def test_people_on_a_basis_and_in_cores_are_the_lora_that_they_stand_for() -> None:
    made, generator = World(), torch.Generator().manual_seed(0)
    features = made.model.score.in_features
    basis, B_P = torch.randn(12, features, generator=generator), torch.randn(5, 1, 12, generator=generator)
    A, B = torch.randn(4, 32, generator=generator) / 6, torch.randn(32, 4, generator=generator) / 6
    cores_P = torch.randn(5, 4, 4, generator=generator)
    residents = made.runtime.residents
    made.handles = residents.add_members(residents.basis_family("score", basis), B_P)
    made.handles += residents.add_members(residents.core_family(VALUE, A, B), cores_P)
    heads = [LoraAdapter(uniform_spec({"score": 12}, 12.0), {"score": LoraPair(basis, one)}) for one in B_P]
    inner = [LoraAdapter(uniform_spec({VALUE: 4}, 4.0), {VALUE: LoraPair(A, B @ core)}) for core in cores_P]
    made.adapters = [*heads, *inner]
    rows: list[Chosen] = [[(0, 1.0)], [(4, 0.5), (7, 1.0)], [], [(9, 1.0)], [(0, 1.0), (5, 0.25)]]
    lengths = [18, 18, 18, 18, 40]
    assert torch.allclose(made.scores(lengths, rows), made.slow_scores(lengths, rows), rtol=1e-4, atol=1e-4)
    for handle in made.handles:
        residents.remove(handle)
    assert residents.stats().families == 2  # bases outlive their people


def test_a_removed_adapter_is_refused_for_ever_and_its_slot_serves_the_next() -> None:
    made = World()
    first = made.add(random_adapter(made.bare, {QUERY: 4}))
    made.add(random_adapter(made.bare, {QUERY: 4}, seed=1))
    before = made.runtime.residents.stats()
    made.runtime.residents.remove(made.handles[first])
    again = made.add(random_adapter(made.bare, {QUERY: 4}, seed=2))
    assert made.runtime.residents.stats() == before
    with pytest.raises(NotFoundError, match="removed"):
        made.scores([16], [[(first, 1.0)]])
    with pytest.raises(NotFoundError, match="removed"):
        made.runtime.residents.remove(made.handles[first])
    assert torch.allclose(made.scores([16], [[(again, 1.0)]]), made.slow_scores([16], [[(again, 1.0)]]), atol=1e-5)


def test_what_no_adapter_needs_any_more_is_freed() -> None:
    made = World()
    numbers = [made.add(random_adapter(made.bare, {QUERY: 4}, seed=seed), shared=seed == 0) for seed in range(20)]
    assert made.runtime.residents.stats().bytes > 0
    for number in numbers:
        made.runtime.residents.remove(made.handles[number])
    stats = made.runtime.residents.stats()
    assert (stats.families, stats.members, stats.bytes) == (0, 0, 0)


def test_a_plan_keeps_its_weights_when_the_adapter_is_removed_or_others_plan_meanwhile() -> None:
    made = World()
    number = made.add(random_adapter(made.bare, {QUERY: 4, VALUE: 4, "score": 2}))
    expected = made.scores([16, 16], [[(number, 1.0)], []])
    plan = made.runtime.plan(made.stacks([[(number, 1.0)], []]))
    made.runtime.residents.remove(made.handles[number])
    for seed in range(10):
        other = made.add(random_adapter(made.bare, {QUERY: 4, VALUE: 4, "score": 2}, seed=seed))
        made.scores([16, 16], [[(other, 1.0)], []])
    tokens, surface = texts([16, 16])
    with made.runtime.running(plan):
        scores = made.model([tokens.ids[row] for row in plan.order], surface[list(plan.order)], 16)
    assert torch.equal(scores[torch.argsort(torch.tensor(plan.order))], expected)


def test_threads_never_see_each_others_plans() -> None:
    made = world()
    jobs: list[list[Chosen]] = [[[], [(number, 1.0)], [(7, 0.5)]] for number in range(len(SAMPLES))]
    expected = [made.scores([20, 20, 20], rows) for rows in jobs]
    wrong: list[int] = []

    def work(start: int) -> None:
        for turn in range(10):
            at = (start + turn) % len(jobs)
            if not torch.equal(made.scores([20, 20, 20], jobs[at]), expected[at]):
                wrong.append(at)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_model_outside_a_plan_and_after_the_runtime_was_closed_is_the_bare_model() -> None:
    made = World()
    number = made.add(random_adapter(made.bare, {QUERY: 4, "score": 2}))
    tokens, surface = texts([16])
    with torch.inference_mode():
        bare = made.bare(tokens.ids, surface, 16)
        assert torch.equal(made.model(tokens.ids, surface, 16), bare)
        made.runtime.close()
        with made.runtime.running(made.runtime.plan(made.stacks([[(number, 1.0)]]))):
            assert torch.equal(made.model(tokens.ids, surface, 16), bare)


def test_runtimes_of_two_models_do_not_mix() -> None:
    first, second = World(), World()
    number = first.add(random_adapter(first.bare, {QUERY: 4, "score": 2}))
    tokens, surface = texts([16])
    with first.runtime.running(first.runtime.plan(first.stacks([[(number, 1.0)]]))):
        assert torch.equal(second.model(tokens.ids, surface, 16), second.bare(tokens.ids, surface, 16))


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_strength_outside_its_range_is_refused(strength: float) -> None:
    with pytest.raises(InvalidInputError, match="not in"):
        world().scores([16], [[(0, strength)]])


def test_two_replacements_of_one_layer_in_a_stack_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="replace layer 'score'"):
        world().scores([16], [[(5, 1.0), (5, 0.5)]])


def test_a_batch_that_is_not_the_plans_is_refused() -> None:
    made = world()
    tokens, surface = texts([16, 16])
    with (
        made.runtime.running(made.runtime.plan(made.stacks([[(0, 1.0)]]))),
        pytest.raises(InvalidInputError, match="the plan has 1 rows"),
    ):
        made.model(tokens.ids, surface, 16)


def test_an_adapter_that_does_not_fit_the_model_is_refused_and_leaves_nothing() -> None:
    made = World()
    wide = LoraAdapter(uniform_spec({QUERY: 2}, 1.0), {QUERY: LoraPair(torch.ones(2, 33), torch.ones(32, 2))})
    with pytest.raises(CorruptArtifactError, match=f"tensor '{QUERY}.lora_A.weight' has the shape"):
        made.add(wide)
    nowhere = LoraAdapter(uniform_spec({"no": 2}, 1.0), {"no": LoraPair(torch.ones(2, 32), torch.ones(32, 2))})
    with pytest.raises(InvalidInputError, match="no linear layer 'no'"):
        made.add(nowhere)
    assert made.runtime.residents.stats().members == 0


def test_siblings_that_read_different_inputs_are_still_right() -> None:
    """Query, key and value are fused because they usually read one tensor; in cross-attention they do not."""

    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key = nn.Linear(6, 5), nn.Linear(6, 5)

        def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            return self.query(x) * self.key(other)  # type: ignore[no-any-return]

    model = Cross()
    adapter = random_adapter(model, {"query": 3, "key": 2})
    x, other = torch.randn(2, 4, 16, 6)
    slow = torch.cat(
        [
            run_row(model, [(adapter, 0.5)], lambda row=row: model(x[row : row + 1], other[row : row + 1]))
            for row in range(4)
        ]
    )
    runtime = BatchedRuntime(model)
    plan = runtime.plan([[Applied(runtime.residents.add(adapter), 0.5)]] * 4)
    with runtime.running(plan):
        assert torch.allclose(model(x, other), slow, atol=1e-5)


def test_a_reward_models_scores_are_those_of_the_backbone_and_the_head(tiny_bert: Path) -> None:
    model: RewardModel = reward_model(tiny_bert)
    tokens, surface = texts([9, 20])
    with torch.inference_mode():
        features = torch.cat([model.backbone.pooled(tokens.ids), surface], dim=1) - model.mean
        assert torch.allclose(model(tokens.ids, surface), features @ model.score.weight[0], atol=1e-5)
