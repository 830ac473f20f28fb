"""What a person agreed to, and what each change does to it."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import product

import pytest

from idiolect import consent as module
from idiolect.consent import POLICY_VERSION, ConsentChange, SubjectState, apply_change
from idiolect.errors import InvalidInputError

NOW = datetime(2026, 6, 1, tzinfo=UTC)
NEVER = SubjectState("ann")


def after(*changes: ConsentChange, start: SubjectState = NEVER) -> SubjectState:
    state = start
    for change in changes:
        state = apply_change(state, change, NOW)
    return state


OPT_IN, OPT_OUT = ConsentChange(opted_in=True), ConsentChange(opted_in=False)
PAUSE, RESUME = ConsentChange(paused=True), ConsentChange(paused=False)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (NEVER, "unknown_user"),
        (after(ConsentChange()), "not_opted_in"),
        (after(OPT_IN), None),
        (after(OPT_IN, PAUSE), "paused"),
        (after(OPT_IN, PAUSE, RESUME), None),
        (after(OPT_IN, OPT_OUT), "not_opted_in"),
        (after(PAUSE), "not_opted_in"),
        (SubjectState("ann", known=False, opted_in=True), "unknown_user"),
    ],
)
def test_who_may_be_served_personally(state: SubjectState, reason: str | None) -> None:
    assert state.refusal() == reason


def test_only_opting_out_raises_the_generation_and_only_once() -> None:
    assert after(OPT_IN, PAUSE, RESUME, ConsentChange(strength=0.5), OPT_IN).generation == 0
    assert after(OPT_IN, OPT_OUT).generation == 1
    assert after(OPT_IN, OPT_OUT, OPT_OUT).generation == 1
    assert after(OPT_OUT).generation == 0
    assert after(OPT_IN, OPT_OUT, OPT_IN, OPT_OUT).generation == 2


def test_every_change_counts_one_revision_and_says_when() -> None:
    for opted_in, paused, strength in product([None, True, False], [None, True, False], [None, 0.0, 0.3, 1.0]):
        start = after(OPT_IN, PAUSE)
        changed = apply_change(start, ConsentChange(opted_in, paused, strength), NOW)
        assert changed.revision == start.revision + 1
        assert changed.updated_at == NOW
        assert changed.known
        assert changed.opted_in == (start.opted_in if opted_in is None else opted_in)
        assert changed.paused == (start.paused if paused is None else paused)
        assert changed.strength == (start.strength if strength is None else strength)


def test_only_opting_in_agrees_to_the_text_of_today(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turning the strength down is no consent to a text that has changed meanwhile."""
    agreed = after(OPT_IN)
    assert agreed.policy_version == POLICY_VERSION
    monkeypatch.setattr(module, "POLICY_VERSION", "2030-01")
    assert after(ConsentChange(strength=0.2), PAUSE, start=agreed).policy_version == POLICY_VERSION
    assert after(OPT_IN, start=agreed).policy_version == "2030-01"
    assert after(OPT_OUT, start=agreed).policy_version is None
    assert after(PAUSE).policy_version is None


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan"), float("inf"), -float("inf")])
def test_a_strength_outside_zero_and_one_is_refused(strength: float) -> None:
    with pytest.raises(InvalidInputError, match="strength"):
        ConsentChange(strength=strength)


@pytest.mark.parametrize("strength", [0, 0.0, 0.5, 1, 1.0])
def test_the_ends_of_the_range_are_in_it(strength: float) -> None:
    assert apply_change(NEVER, ConsentChange(strength=strength), NOW).strength == strength
