"""The checker that judges resets from the outside, and what a receipt says of caches."""

from __future__ import annotations

import pytest

from idiolect.resets.purges import SILENT_SECONDS, Replica, progress_of
from idiolect_services.bench.reset_checker import Acknowledged, Answered, Event, Published, violations

BARE, OLD, NEW = (0.0, 0.0), (1.0, 2.0), (3.0, 4.0)
LIFE: list[Event] = [
    Published("ann", "a0", 0),
    Answered("ann", 0, "a0", OLD),
    Acknowledged("ann", 1),
    Answered("ann", 1, None, BARE),
    Published("ann", "a1", 1),
    Answered("ann", 1, "a1", NEW),
    Answered("ann", None, None, BARE),
]


def test_a_life_without_fault_is_found_without_fault() -> None:
    assert violations(LIFE) == []


def test_what_arrived_before_the_acknowledgement_may_be_of_before_the_reset() -> None:
    late = [*LIFE[:2], Answered("ann", 0, "a0", OLD), *LIFE[2:]]
    assert violations(late) == []


@pytest.mark.parametrize(
    ("planted", "what"),
    [
        (Answered("ann", 0, None, BARE), "says generation 0"),
        (Answered("ann", 1, "a0", OLD), "of generation 0"),
        (Answered("ann", None, "a0", OLD), "of generation 0"),
        (Answered("ann", 1, None, OLD), "its scores are those of a0"),
        (Answered("ann", 1, "a1", OLD), "its scores are those of a0"),
        (Answered("ann", 1, "b0", (5.0, 6.0)), "not this person's"),
        (Answered("ann", 1, "nobody knows", (7.0, 8.0)), "not this person's"),
    ],
)
def test_every_kind_of_planted_violation_is_found_where_it_is(planted: Answered, what: str) -> None:
    log = [Published("bob", "b0", 0), *LIFE, planted]
    found = violations(log)
    assert {(one.position, one.user) for one in found} == {(len(log) - 1, "ann")}
    assert any(what in one.what for one in found)


def test_an_older_acknowledgement_that_comes_later_lowers_nothing() -> None:
    log = [Acknowledged("ann", 2), Acknowledged("ann", 1), Answered("ann", 1, None, BARE)]
    assert [one.position for one in violations(log)] == [2]


def test_resets_of_others_fence_nobody_else() -> None:
    assert violations([Acknowledged("bob", 5), *LIFE]) == []


@pytest.mark.parametrize(
    ("replica", "state"),
    [
        (Replica("r", 0, 5, 0.0), "confirmed"),
        (Replica("r", 0, 5, 1e9), "confirmed"),  # it was heard of long ago, but what it said holds
        (Replica("r", 0, 4, 0.0), "pending"),
        (Replica("r", 0, 4, SILENT_SECONDS + 1), "silent"),
    ],
)
def test_each_process_is_said_to_be_where_it_is(replica: Replica, state: str) -> None:
    progress = progress_of(5, 9, [replica])
    assert progress.replicas == (("r", state),)
    assert progress.done == (state == "confirmed")
    assert progress.to_json()[state] == 1


def test_processes_that_began_later_are_left_out() -> None:
    assert progress_of(5, 9, [Replica("r", 5, 5, 0.0), Replica("s", 9, 9, 0.0)]).replicas == ()


def test_the_process_that_has_just_purged_counts_before_it_says_so() -> None:
    assert progress_of(5, 9, [Replica("r", 0, 4, 0.0)], "r").done


def test_after_a_restore_that_shortened_the_log_its_end_is_what_counts() -> None:
    assert progress_of(500, 3, [Replica("r", 0, 3, 0.0)]).done
    assert not progress_of(500, 3, [Replica("r", 0, 2, 0.0)]).done
    assert progress_of(500, 0, []).to_json()["state"] == "confirmed"
