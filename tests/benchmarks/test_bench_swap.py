from __future__ import annotations

import pytest
from quiet import QuietStages

from idiolect.errors import CorruptArtifactError
from idiolect_services.bench.swap_bench import BYTES, METRICS, P50, THROUGHPUT, Traffic, Work, measure
from idiolect_services.bench.swap_registry import SyntheticRegistry, owner_of

SMALL = Work(
    resident=20,
    swaps=10,
    peft_resident=3,
    peft_swaps=2,
    people=500,
    few_people=20,
    requests=50,
    rounds=2,
    cold=20,
)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # transformers', about what peft asks of it
def test_the_whole_benchmark_runs_and_gives_every_figure() -> None:
    stages = QuietStages()
    measured = {one.metric: one for one in measure(SMALL, stages)}
    assert set(measured) == set(METRICS)
    assert all(one.value > 0 for name, one in measured.items() if name != BYTES)
    assert measured[P50].ratio is not None
    assert measured[P50].ratio > 0
    assert measured[THROUGHPUT].peer == "20 people"
    assert len(stages.names) == 4


def test_the_synthetic_registry_serves_what_it_resolves_and_a_swap_changes_both() -> None:
    traffic = Traffic(10, SyntheticRegistry())
    registry, bank = traffic.registry, traffic.bank
    before = registry.resolve(3)
    old = bank.weights(owner_of(3), before)
    registry.swap(3)
    after = registry.resolve(3)
    assert after != before
    assert (bank.weights(owner_of(3), after) != old).any()
    with pytest.raises(CorruptArtifactError):
        bank.weights(owner_of(4), after)
    assert all(0 <= person < 10 for person in traffic.draw(1000))
