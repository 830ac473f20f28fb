from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idiolect.rollouts.outcomes import Member, Served, after_answer, after_request, success_of

SHOWN = (3, 1, 0, 2)


@pytest.mark.parametrize(
    ("kind", "value", "success"),
    [
        ("choice", 3, 1.0),
        ("choice", 2, 0.0),
        ("accept", 1, 2 / 3),
        ("dismiss", 3, 0.0),
        ("dismiss", 2, 1.0),
        ("ranking", [3, 1, 0, 2], 1.0),
        ("ranking", [2, 0, 1, 3], 0.0),
        ("ranking", [3, 0, 1], 2 / 3),
        ("ranking", [3], None),
        ("rating", [[3, 5], [1, 4]], 1.0),
        ("rating", [[3, 1], [1, 4]], 0.0),
        ("rating", [[3, 4], [1, 4]], None),
        ("choice", None, None),
        ("dwell", 3, None),
    ],
)
def test_success_says_how_right_the_order_shown_was(kind: str, value: Any, success: float | None) -> None:
    assert success_of(kind, value, SHOWN) == (None if success is None else pytest.approx(success))


def test_a_list_of_one_says_nothing() -> None:
    assert success_of("choice", 0, (0,)) is None


def test_a_very_long_ranking_is_judged_by_its_start() -> None:
    assert success_of("ranking", list(range(1000)), tuple(range(1000))) == 1.0


def test_pairs_beyond_the_start_of_a_long_ranking_say_nothing() -> None:
    liked = [*range(50), *range(999, 49, -1)]  # the rest was shown the wrong way round
    assert success_of("ranking", liked, tuple(range(1000))) == 1.0


def served(**fields: Any) -> Served:
    return Served("acme", "ann", (), **{"seconds": 0.1} | fields)


@given(st.lists(st.tuples(st.floats(0, 2), st.booleans(), st.booleans()), max_size=30), st.integers(1, 20))
def test_a_person_contributes_one_bounded_mean_of_their_first_requests(
    requests: list[tuple[float, bool, bool]], per_person: int
) -> None:
    member, contributed = Member("control"), []
    for seconds, fallback, failed in requests:
        member, values = after_request(
            member, served(seconds=seconds, fallback=fallback, failed=failed), per_person, 1000.0
        )
        contributed += [values] if values else []
    assert len(contributed) == (len(requests) >= per_person)
    for values in contributed:
        first = requests[:per_person]
        assert values == {
            "slow": sum(seconds > 1.0 for seconds, _, _ in first) / per_person,
            "fallback": sum(fallback for _, fallback, _ in first) / per_person,
            "failed": sum(failed for _, _, failed in first) / per_person,
        }


@given(st.lists(st.floats(0, 1), max_size=30), st.integers(1, 20))
def test_answers_are_averaged_alike(answers: list[float], per_person: int) -> None:
    member, contributed = Member("candidate"), []
    for answer in answers:
        member, values = after_answer(member, answer, per_person)
        contributed += list(values.values())
    expected = [sum(answers[:per_person]) / per_person] if len(answers) >= per_person else []
    assert contributed == pytest.approx(expected)


def test_what_takes_exactly_as_long_as_is_allowed_is_not_slow() -> None:
    _, allowed = after_request(Member("control"), served(seconds=0.25), 1, 250.0)
    _, longer = after_request(Member("control"), served(seconds=0.5), 1, 250.0)
    assert (allowed["slow"], longer["slow"]) == (0.0, 1.0)


def test_who_has_contributed_changes_no_more() -> None:
    member = Member("candidate", requests=2, answers=2, success=1.5)
    assert after_answer(member, 1.0, 2) == (member, {})
    assert after_request(member, served(failed=True), 2, 250.0) == (member, {})
