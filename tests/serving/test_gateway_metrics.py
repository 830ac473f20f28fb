"""What the operator's scraper sees, and that nobody else does."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_world import World, assert_problem, world_at

from idiolect_services.gateway.exposition import Buckets, Family, Histogram, exposition

TOKEN = "a-long-enough-token"
LINE = re.compile(r'([a-z_]+)(\{[a-z_]+="(?:[^"\\\n]|\\.)*"(?:,[a-z_]+="(?:[^"\\\n]|\\.)*")*\})? (\S+)')


@pytest.fixture
def watched(tmp_path: Path, empty_database: Path) -> Iterator[World]:
    shutil.copy(empty_database, tmp_path / "x.db")
    with world_at(tmp_path, metrics_token=TOKEN) as made:
        yield made


def scrape(world: World) -> dict[str, float]:
    """Samples by name and labels, every line checked against the format."""
    response = world.api(TOKEN).get("/metrics")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert response.text.endswith("\n")
    samples, typed = {}, set()
    for line in response.text.splitlines():
        if line.startswith("# TYPE "):
            name = line.split()[2]
            assert name not in typed  # all samples of a name lie together
            typed.add(name)
        elif not line.startswith("# HELP "):
            matched = LINE.fullmatch(line)
            assert matched is not None, line
            assert re.sub("_(bucket|sum|count)$", "", matched[1]) in typed or matched[1] in typed
            assert matched[1] + (matched[2] or "") not in samples
            samples[matched[1] + (matched[2] or "")] = float(matched[3])
    return samples


def test_no_key_of_a_tenant_opens_the_numbers_of_all_tenants(watched: World, world: World) -> None:
    for api in (watched.api(), watched.api(watched.key()), watched.api(TOKEN + "x"), watched.api(TOKEN[:-1])):
        assert_problem(api.get("/metrics"), 404, "not_found")
    assert_problem(world.api("None").get("/metrics"), 404, "not_found")  # no token is set there
    assert_problem(world.api().get("/metrics"), 404, "not_found")


def test_requests_are_counted_by_pattern_and_status_and_name_nobody(watched: World) -> None:
    api = watched.api(watched.key())
    watched.opt_in("secret-person")
    version = watched.publish_user("secret-person")
    watched.publish_domain("secret-domain")
    api.rerank("secret-person", domain="secret-domain")
    api.rerank("secret-person")
    api.rerank()
    api.post("/v1/rerank", {})
    api.get("/v1/users/secret-person/personalization")
    api.get("/v1/nothing/here")
    samples = scrape(watched)
    assert samples['idiolect_requests_total{route="/v1/rerank",method="POST",status="200"}'] == 3
    assert samples['idiolect_requests_total{route="/v1/rerank",method="POST",status="422"}'] == 1
    assert samples['idiolect_requests_total{route="/v1/users/{user}/personalization",method="GET",status="200"}'] == 1
    assert samples['idiolect_requests_total{route="none",method="GET",status="404"}'] == 1
    assert samples['idiolect_request_seconds_count{route="/v1/rerank"}'] == 4
    assert samples['idiolect_request_seconds_bucket{route="/v1/rerank",le="+Inf"}'] == 4
    assert samples['idiolect_rankings_total{reason="applied"}'] == 2
    assert samples['idiolect_rankings_total{reason="no_user"}'] == 1
    shown = "\n".join(samples)
    subject = watched.pseudonym("acme", "secret-person")
    for private in ("secret", "acme", subject, version.id, version.release):
        assert private not in shown


def test_tiers_texts_and_the_queue_are_shown(watched: World) -> None:
    api = watched.api(watched.key())
    watched.opt_in("ann")
    watched.publish_user("ann")
    api.rerank("ann")
    api.rerank("ann")
    samples = scrape(watched)
    assert samples['idiolect_bank_entries{tier="slab"}'] == 1
    assert samples["idiolect_bank_loads_total"] == 1
    assert samples['idiolect_bank_hits_total{tier="slab"}'] >= 1
    assert samples["idiolect_feature_cache_entries"] == 10
    assert samples["idiolect_forward_texts_total"] == 10
    assert samples["idiolect_queue_texts"] == samples["idiolect_quarantined_total"] == 0
    assert samples["idiolect_store_up"] == 1
    assert samples["idiolect_rollouts_active"] == 0
    assert samples[f'idiolect_model_info{{digest="{watched.model.digest}"}}'] == 1


def test_a_store_that_is_gone_leaves_the_rest_of_the_numbers(watched: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from idiolect.errors import UnavailableError

    def gone() -> None:
        raise UnavailableError("no store.")

    monkeypatch.setattr(watched.store, "active_rollouts", gone)
    samples = scrape(watched)
    assert samples["idiolect_store_up"] == 0
    assert "idiolect_rollouts_active" not in samples
    assert "idiolect_bank_loads_total" in samples


def test_made_up_methods_make_no_new_labels(watched: World) -> None:
    for method in ("BREW", "WHEN", "GET"):
        watched.api().send(method, f"/{method}")
    requests = {name: value for name, value in scrape(watched).items() if name.startswith("idiolect_requests_total")}
    assert requests == {
        'idiolect_requests_total{route="none",method="other",status="404"}': 2,
        'idiolect_requests_total{route="none",method="GET",status="404"}': 1,
    }


def test_the_text_format_is_prometheus_own() -> None:
    buckets = Buckets((0.1, 1.0))
    for value in (0.1, 0.5, 7.0, 0.025):
        buckets.add(value)
    text = exposition(
        [
            Family("a_total", "counter", "About a.", {(("x", 'q"\\\n'),): 2.0, (("x", ""),): 0.5}),
            Histogram("b_seconds", "About b.", {(("r", "/"),): buckets}),
        ]
    )
    assert text.decode().splitlines() == [
        "# HELP a_total About a.",
        "# TYPE a_total counter",
        'a_total{x="q\\"\\\\\\n"} 2',
        'a_total{x=""} 0.5',
        "# HELP b_seconds About b.",
        "# TYPE b_seconds histogram",
        'b_seconds_bucket{r="/",le="0.1"} 2',
        'b_seconds_bucket{r="/",le="1"} 3',
        'b_seconds_bucket{r="/",le="+Inf"} 4',
        'b_seconds_sum{r="/"} 7.625',
        'b_seconds_count{r="/"} 4',
    ]
