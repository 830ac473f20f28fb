from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from serving_world import World, assert_problem

from idiolect.errors import UnavailableError

PATH = "/v1/feedback"


def served(world: World, user: str = "ann", **fields: Any) -> str:
    world.opt_in(user)
    return str(world.api(world.key()).rerank(user, **fields)["id"])


def signal(inference: str, **fields: Any) -> dict[str, Any]:
    return {"inference_id": inference, "kind": "choice", "value": 3, "user": "ann"} | fields


def stored(world: World, user: str = "ann") -> int:
    snapshot = world.store.personal_snapshot("acme", subjects=[world.pseudonym("acme", user)], max_comparisons=2000)
    return len(snapshot.comparisons)


@pytest.mark.parametrize(
    ("kind", "value", "comparisons"),
    [
        ("choice", 3, 9),
        ("ranking", [4, 2, 9], 2),
        ("rating", [[1, 5], [2, 3.5], [3, 3.5]], 2),
        ("rating", [[1, 5]], 0),
    ],
)
def test_every_kind_becomes_comparisons(world: World, kind: str, value: Any, comparisons: int) -> None:
    response = world.api(world.key()).post(PATH, signal(served(world), kind=kind, value=value))
    assert response.status_code == 202, response.text
    assert stored(world) == comparisons


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "love"},
        {"kind": "ranking", "value": 3},
        {"kind": "ranking", "value": []},
        {"kind": "ranking", "value": [1, 1]},
        {"kind": "ranking", "value": list(range(101))},
        {"kind": "rating", "value": [1, 2]},
        {"kind": "rating", "value": [[1, 101]]},
        {"kind": "rating", "value": [[1, True]]},
        {"kind": "rating", "value": [[1.0, 5]]},
        {"value": -1},
        {"value": 10},
        {"value": True},
        {"value": 3.0},
        {"value": "3"},
        {"value": None},
        {"value": 10**30},
        {"value": [[[[]]]]},
        {"inference_id": "unknown"},
        {"inference_id": "a b"},
        {"inference_id": ""},
        {"id": "a b"},
        {"id": "x" * 129},
        {"user": ""},
        {"user": "bob"},
        {"domain": "news"},
        {"occurred_at": 5},
        {"occurred_at": "yesterday"},
        {"occurred_at": "2026-01-01T00:00:00"},
        {"occurred_at": "9999-01-01T00:00:00Z"},
        {"occurred_at": "0001-01-01T00:00:00+14:00"},  # of no year in UTC: it was taken, and no export could be made
        {"occurred_at": "9999-12-31T23:59:59-14:00"},
        {"occurred_at": "1970-01-01T00:00:00Z"},
    ],
)
def test_a_signal_that_can_not_be_meant_is_refused_and_leaves_nothing(world: World, fields: dict[str, Any]) -> None:
    response = world.api(world.key()).post(PATH, signal(served(world), **fields))
    problem = assert_problem(response, 422, "invalid_input")
    assert "errors" in problem or "user" in problem["detail"]
    assert stored(world) == 0
    assert world.fed_back == []


def test_a_document_that_was_not_shown_takes_no_feedback(world: World) -> None:
    shown = world.api(world.key()).rerank("ann", top_n=2)
    world.opt_in("ann")
    hidden = next(index for index in range(10) if index not in [r["index"] for r in shown["results"]])
    assert_problem(world.api(world.key()).post(PATH, signal(shown["id"], value=hidden)), 422, "invalid_input")


def test_feedback_of_who_did_not_agree_is_not_kept(world: World) -> None:
    api = world.api(world.key())
    shown = api.rerank("ann")["id"]
    assert_problem(api.post(PATH, signal(shown)), 409, "personalization_unavailable")
    assert world.fed_back == []


def test_the_time_and_domain_of_a_signal_are_kept_in_step_with_its_inference(world: World) -> None:
    shown = served(world, domain="news")
    then = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    assert world.api(world.key()).post(PATH, signal(shown, domain="news", occurred_at=then)).status_code == 202


def test_a_batch_answers_for_each_signal(world: World) -> None:
    api = world.api(world.key())
    mine = served(world)
    open_to_all = api.rerank("bob")["id"]
    signals = [
        signal(mine, id="1"),
        signal(mine, id="1"),
        signal(mine, id="2", kind="accept", value=4),
        signal(open_to_all, id="3", user="bob"),
    ]
    response = api.post(PATH, {"signals": signals})
    assert response.status_code == 202
    told = response.json()
    assert [(r["id"], r["status"]) for r in told["results"]] == [
        ("1", "accepted"),
        ("1", "duplicate"),
        ("2", "accepted"),
        ("3", "refused"),
    ]
    assert told["results"][3]["code"] == "personalization_unavailable"
    assert (told["accepted"], told["duplicate"], told["refused"]) == (2, 1, 1)
    assert world.fed_back == [("acme", world.pseudonym("acme", "ann"))]
    assert [r["status"] for r in api.post(PATH, {"signals": signals[:3]}).json()["results"]] == ["duplicate"] * 3


def test_a_batch_with_a_signal_that_can_never_be_stored_leaves_nothing(world: World) -> None:
    mine = served(world)
    for bad in (signal("unknown"), signal(mine, value=99), signal(mine, user="bob"), {"kind": "choice"}):
        response = world.api(world.key()).post(PATH, {"signals": [signal(mine), bad]})
        problem = assert_problem(response, 422, "invalid_input")
        assert all(error["field"].startswith("signals.1") for error in problem["errors"]), problem
    assert stored(world) == 0


def test_a_batch_is_bounded(world: World) -> None:
    mine = served(world)
    api = world.api(world.key())
    assert_problem(api.post(PATH, {"signals": [signal(mine)] * 101}), 413, "too_large")
    assert_problem(api.post(PATH, {"signals": []}), 422, "invalid_input")
    assert_problem(api.post(PATH, {"signals": "many"}), 422, "invalid_input")


def test_signals_that_the_store_could_not_take_are_named_for_a_retry(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = served(world)
    real, calls = world.store.add_feedback, []

    def flaky(*args: Any) -> bool:
        calls.append(args)
        if len(calls) == 2:
            raise UnavailableError("the database /secret/path is locked.")
        return bool(real(*args))

    monkeypatch.setattr(world.store, "add_feedback", flaky)
    signals = [signal(mine, id=name) for name in "abc"]
    response = world.api(world.key()).post(PATH, {"signals": signals})
    assert [r["status"] for r in response.json()["results"]] == ["accepted", "refused", "accepted"]
    assert response.json()["results"][1]["code"] == "unavailable"
    assert "/secret/path" not in response.text
    again = world.api(world.key()).post(PATH, {"signals": signals}).json()
    assert [r["status"] for r in again["results"]] == ["duplicate", "accepted", "duplicate"]
