"""The Grafana dashboard asks only for metrics that a server shows, and for most of those."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from idiolect_adapters.runtime.bank import BankStats
from idiolect_adapters.runtime.features import FeatureStats
from idiolect_services.gateway.batching import BatchStats
from idiolect_services.gateway.exposition import Histogram
from idiolect_services.gateway.metrics import Metrics, ServerState, state_families

DASHBOARD = json.loads((Path(__file__).parents[2] / "deploy" / "grafana" / "idiolect.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def of_zeros(kind: Any) -> Any:
    return kind(**dict.fromkeys(kind.__dataclass_fields__, 0))


def shown() -> dict[str, set[str]]:
    """Names of samples with their labels, as one scrape shows them."""
    metrics = Metrics()
    metrics.answered("/v1/rerank", "POST", 200, 0.01)
    metrics.personalized("applied")
    state = ServerState(
        of_zeros(BankStats),
        of_zeros(FeatureStats),
        of_zeros(BatchStats),
        "a" * 64,
        model_switches=0,
        model_outdated=False,
        models_draining=0,
        candidate_missing=False,
        quarantined=0,
        active_rollouts=0,
    )
    found: dict[str, set[str]] = {}
    for family in [*metrics.families(), *state_families(state)]:
        labels = {name for sample in family.samples for name, _ in sample}
        if isinstance(family, Histogram):
            found |= {f"{family.name}_{ending}": labels for ending in ("sum", "count")}
            found[f"{family.name}_bucket"] = labels | {"le"}
        else:
            found[family.name] = labels
    return found


def test_every_query_names_metrics_and_labels_that_exist() -> None:
    samples = shown()
    for query in QUERIES:
        used = re.findall(r"(idiolect_\w+)\{([^}]*)\}", query)
        assert len(used) == query.count("idiolect_")
        for name, selector in used:
            assert name in samples, query
            selected = set(re.findall(r"(\w+)=", selector)) - {"job"}
            grouped = {label for group in re.findall(r"by \((\w+)\)", query) for label in [group]}
            assert selected | grouped <= samples[name], query


def test_every_query_has_balanced_brackets_and_counters_are_only_read_as_rates() -> None:
    for query in QUERIES:
        assert query.count("(") == query.count(")")
        for name in re.findall(r"idiolect_\w+_total|idiolect_\w+_bucket", query):
            if name != "idiolect_quarantined_total":  # since the start, on purpose
                assert re.search(rf"(?:rate|increase)\({name}", query), query


def test_legends_name_labels_that_the_query_keeps() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                assert f"by ({label})" in target["expr"]


def test_what_a_server_shows_is_on_the_dashboard_but_for_details() -> None:
    details = {
        "idiolect_bank_bytes",
        "idiolect_bank_hits_total",
        "idiolect_bank_pinned",
        "idiolect_bank_draining",
        "idiolect_bank_loading",
        "idiolect_bank_prefetches_waiting",
        "idiolect_bank_prefetches_dropped_total",
        "idiolect_feature_cache_evictions_total",
        "idiolect_lora_resident_bytes",
        "idiolect_lora_resident_shapes",
        "idiolect_lora_residents",
        "idiolect_models_draining",
        "idiolect_request_seconds_sum",
        "idiolect_request_seconds_count",
    }
    asked = set(re.findall(r"idiolect_\w+", " ".join(QUERIES)))
    assert set(shown()) - asked == details


def test_panels_have_titles_of_their_own_and_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["title"] for panel in panels}) == len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        mine = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not mine & cells
        cells |= mine
