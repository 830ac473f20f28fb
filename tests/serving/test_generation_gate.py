from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from idiolect_services.gateway.gate import GenerationGate


def test_nothing_older_than_an_announced_generation_is_admitted() -> None:
    gate = GenerationGate()
    ticket = gate.ticket()
    assert gate.admits(ticket, "t", "ann", 0)
    gate.announce("t", "ann", 1)
    assert not gate.admits(ticket, "t", "ann", 0)
    assert gate.admits(ticket, "t", "ann", 1)
    assert gate.admits(ticket, "t", "bob", 0)
    assert gate.admits(ticket, "u", "ann", 0)


def test_a_late_replay_of_an_older_reset_lowers_nothing() -> None:
    gate = GenerationGate()
    gate.announce("t", "ann", 5)
    gate.announce("t", "ann", 2)
    assert not gate.admits(gate.ticket(), "t", "ann", 4)


def test_nothing_personal_is_always_admitted() -> None:
    gate = GenerationGate(capacity=1)
    gate.announce("t", "ann", 1)
    gate.announce("t", "bob", 1)
    assert gate.admits(0, "t", None, None)
    assert gate.admits(0, "t", "ann", None)


def test_a_request_older_than_a_dropped_announcement_is_refused_rather_than_trusted() -> None:
    gate = GenerationGate(capacity=1)
    old = gate.ticket()
    gate.announce("t", "ann", 1)
    between = gate.ticket()
    gate.announce("t", "bob", 1)  # drops ann's
    assert len(gate) == 1
    assert not gate.admits(old, "t", "ann", 0)
    assert not gate.admits(old, "t", "cid", 0)  # can't be told apart from ann
    assert gate.admits(between, "t", "cid", 0)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 9)), max_size=30), st.data())
@settings(max_examples=200, deadline=None)
def test_a_small_gate_never_admits_what_an_unbounded_one_refuses(
    announcements: list[tuple[str, int]], data: st.DataObject
) -> None:
    """Except for requests that began after the announcement, which have read the new generation from the store."""
    small, began = GenerationGate(capacity=2), data.draw(st.integers(0, len(announcements)))
    ticket = 0
    for number, (subject, generation) in enumerate(announcements):
        ticket = small.ticket() if number == began else ticket
        small.announce("t", subject, generation)
    if began == len(announcements):
        ticket = small.ticket()
    for subject in "abcd":
        newer = max([g for s, g in announcements[began:] if s == subject], default=0)
        for generation in range(newer):
            assert not small.admits(ticket, "t", subject, generation)
