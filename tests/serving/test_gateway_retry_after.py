"""Whoever is told to come back is told when."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.requests import Request

from idiolect.errors import ConfigurationError, IdiolectError, QuotaExceededError, UnavailableError
from idiolect.stores.sql.arriving import ARRIVING_SECONDS
from idiolect_services.gateway.problems import problem, problem_from
from idiolect_services.gateway.statuses import StatusError

REQUEST = Request({"type": "http", "method": "GET", "path": "/v1/releases", "headers": []})
ARRIVING = UnavailableError("it arrives.", code="release_arriving", retry_after_s=ARRIVING_SECONDS)


def kinds(parent: type[IdiolectError] = IdiolectError) -> Iterator[type[IdiolectError]]:
    yield parent
    for kind in parent.__subclasses__():
        yield from kinds(kind)


def errors() -> Iterator[IdiolectError]:
    for kind in set(kinds()) - {StatusError} - {one for one in kinds() if one.__name__ == "FieldsError"}:
        if not kind.__module__.startswith("idiolect.client"):
            yield kind("no.")
    yield QuotaExceededError("no.", retry_after_s=90)
    yield UnavailableError("no.", code="overloaded")
    yield ARRIVING
    for status in (400, 429, 502, 503, 504):
        yield StatusError(status, "no.", mend="Wait.", code="x")
        yield StatusError(status, "no.", mend="Wait.", code="x", retry_after_s=7)


def test_every_429_and_503_says_when_to_come_back() -> None:
    answers = [problem_from(error, REQUEST) for error in errors()]
    answers += [problem(REQUEST, status, "x", "no.", "Wait.") for status in (429, 503)]
    asked_back = [answer for answer in answers if answer.status_code in (429, 503)]
    assert {answer.status_code for answer in asked_back} == {429, 503}
    for answer in asked_back:
        assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (UnavailableError("away."), "1"),
        (ConfigurationError("no database."), "1"),
        (StatusError(429, "the upstream is busy.", mend="Wait.", code="upstream_rate_limited"), "1"),
        (QuotaExceededError("a day.", retry_after_s=90), "90"),
        (ARRIVING, "30"),
    ],
)
def test_it_says_what_is_known_of_when(error: IdiolectError, seconds: str) -> None:
    assert problem_from(error, REQUEST).headers["retry-after"] == seconds
