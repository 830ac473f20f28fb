"""The registry benchmark with small numbers; MLflow is a stand-in that speaks the same lines."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from quiet import QuietStages

from idiolect.errors import ConfigurationError
from idiolect_services.bench import registry_bench
from idiolect_services.bench.peers import peer_python
from idiolect_services.bench.registry_bench import AGAINST_PEER, OF_DATABASE, Work, measure, metrics
from idiolect_services.bench.registry_crowd import TENANT, gather
from people_keys import open_with_keys

SMALL = Work(people=60, few_people=20, resolves=30, rounds=2, writers=6, moves=4, peer_models=2, peer_operations=3)
STAND_IN = """
import json, sys
print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps({kind: [0.5] * int(line) for kind in ("create", "move", "resolve")}), flush=True)
"""


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "peer.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(registry_bench.peer_mlflow, "__file__", str(script))
    return Path(sys.executable)


def test_the_whole_benchmark_runs_on_both_databases_and_gives_every_figure(python: Path) -> None:
    measured = {one.metric: one for one in measure(SMALL, QuietStages(), python)}
    assert list(measured) == sorted(measured, key=metrics().index)
    assert set(measured) == set(metrics())
    for name in ("sqlite", "postgres"):
        assert measured[f"{name}_winners_per_generation"].value == 1
        assert measured[f"{name}_lost_updates"].value == 0
        assert measured[f"{name}_still_served"].value == 0
        assert measured[f"{name}_publish_seconds_a_million"].value > 0
        assert measured[f"{name}_reset_beside_publish"].value > 0
        assert measured[f"{name}_resolve_p99"].peer == "20 people"
    for name in AGAINST_PEER:
        one = measured[f"mlflow_{name}"]
        assert one.peer_value == 500.0
        assert one.ratio is not None
        assert one.ratio > 0
    assert len(OF_DATABASE) == 11


def test_each_single_move_of_the_benchmark_moves_something(tmp_path: Path) -> None:
    store = open_with_keys(f"sqlite:///{tmp_path / 'idiolect.db'}")
    crowd = gather(store, 4)
    releases = [crowd.publish(crowd.people), crowd.publish(crowd.people)]
    for release in releases:
        registry_bench._operations_ms(crowd, release, 10)
    entries = store.audit_entries(TENANT, limit=1_000)
    store.close()
    assert sum(entry.action == "pointer.promote" for entry in entries) == 20


def test_a_peer_that_is_not_set_up_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="mlflow, is not set up") as caught:
        peer_python("mlflow", tmp_path)
    assert caught.value.mend == "Run: make peers."


def test_a_peer_that_stops_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "peer.py"
    script.write_text("raise SystemExit(1)")
    monkeypatch.setattr(registry_bench.peer_mlflow, "__file__", str(script))
    with pytest.raises(ConfigurationError, match="MLflow, stopped"):
        measure(Work(databases=(), few_people=2, rounds=1, peer_operations=1), QuietStages(), Path(sys.executable))
