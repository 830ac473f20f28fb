"""Whatever the description allows, and much that it doesn't, is sent to every operation of the API: each answer must be
one that is described. The cases are the same in every run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from every_route import JSON, UPSTREAM, Settled, names, operations, with_upstream
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core import NOT_SET
from schemathesis.core.failures import FailureGroup
from serving_world import world_at

EXAMPLES = 15  # of each operation, as described and otherwise
CHECKED = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
# Not `negative_data_rejection`: unknown fields and parameters are ignored, since clients of other services send more.
# Not `positive_data_acceptance`: what several fields may not be together is said in words.

NEVER_MIND = list(HealthCheck)  # how long it takes to make cases up


@pytest.fixture
def acme(tmp_path: Path, empty_database: Path) -> Iterator[Settled]:
    shutil.copy(empty_database, tmp_path / "x.db")
    with world_at(tmp_path, upstream_hosts=UPSTREAM) as made:
        yield Settled(with_upstream(made))


def test_every_answer_is_one_that_is_described(acme: Settled, subtests: pytest.Subtests) -> None:
    load_all_checks()
    schema = schemathesis.openapi.from_dict(acme.world.app.openapi())
    schema.app = acme.world.app
    ours = {(one.method, one.path): one for one in operations(acme.world.app)}
    described = [found.ok() for found in schema.get_all_operations()]
    assert len(described) == len(ours)
    for media in {one.media for one in ours.values()} - {None, JSON}:
        schemathesis.serializer(media)(
            lambda _context, value: value if isinstance(value, bytes) else str(value).encode()
        )
    for one in described:
        operation = ours[one.method.upper(), one.path]
        with subtests.test(str(operation)):
            known = {name: acme.known.get(name, "made-up") for name in names(one.path)}
            body = acme.files[operation.media] if operation.media not in (None, JSON) else acme.body(operation)
            right = one.Case(
                path_parameters=known,
                query=acme.query(operation),
                body=NOT_SET if body is None else body,
                media_type=operation.media,
            )
            answer = sent(right, acme.full)
            assert operation.is_open(answer.status_code), "name what it needs in every_route.Settled.known"
            checked(one.as_strategy(GenerationMode.POSITIVE), acme.full)
            if known:
                checked(one.as_strategy(GenerationMode.POSITIVE, path_parameters=known), acme.full)
            if one.body or one.query:
                checked(one.as_strategy(GenerationMode.NEGATIVE), acme.full)
        acme.settle_after(operation)


def checked(cases: Any, key: str) -> None:
    @settings(max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=NEVER_MIND)
    @given(cases)
    def answers_as_described(case: Any) -> None:
        sent(case, key)

    answers_as_described()


def sent(case: Any, key: str) -> Any:
    """The answer, which is checked."""
    response = case.call(headers={"Authorization": f"Bearer {key}"})
    # A caller who allows a millisecond may be told that it is over.
    timed_out = response.status_code == 503 and response.json()["code"] == "deadline_exceeded"
    checks = [name for name in CHECKED if not (timed_out and name == "not_a_server_error")]
    case.validate_response(response, checks=CHECKS.get_by_names(checks))
    return response


def test_an_answer_that_is_not_described_is_noticed(acme: Settled, monkeypatch: pytest.MonkeyPatch) -> None:
    load_all_checks()
    schema = schemathesis.openapi.from_dict(acme.world.app.openapi())
    schema.app = acme.world.app
    healthz = schema["/healthz"]["GET"]
    assert sent(healthz.Case(), acme.full).status_code == 200
    monkeypatch.setattr("idiolect_services.gateway.routes.health._OK", b'{"status":"fine"}')
    with pytest.raises(FailureGroup):
        sent(healthz.Case(), acme.full)
