"""The chain itself: what verification finds, and what it can't find without an anchor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idiolect.audit import GENESIS, AuditEntry, AuditEvent, Head, entry_after, verify
from idiolect.errors import CorruptArtifactError, InvalidInputError


def chain(length: int, tenant: str = "acme") -> list[AuditEntry]:
    entries: list[AuditEntry] = []
    head = Head()
    for number in range(length):
        event = AuditEvent("admin", "release.revoke", f"release {number}", "bad", {"number": number})
        entries.append(entry_after(head, tenant, event, 1_000_000 * number))
        head = entries[-1].head
    return entries


def test_an_untouched_chain_holds_whole() -> None:
    entries = chain(5)
    verdict = verify(entries, entries[-1].head)
    assert (verdict.entries, verdict.head, verdict.broken) == (5, entries[-1].head, None)
    assert entries[0].previous == GENESIS


def test_an_empty_chain_holds() -> None:
    assert verify([], Head()).broken is None


@pytest.mark.parametrize("field", ["tenant", "at_us", "actor", "action", "object", "reason", "details"])
def test_an_edited_field_is_found_and_named(field: str) -> None:
    entries = chain(4)
    value: Any = 7 if field == "at_us" else "edited"
    entries[1] = replace(entries[1], **{field: value})
    broken = verify(entries, entries[-1].head).broken
    assert broken is not None
    assert (broken.seq, broken.fault) == (2, "edited")


def test_an_edited_entry_with_its_hash_made_right_breaks_the_one_after() -> None:
    entries = chain(4)
    draft = replace(entries[1], reason="nothing to see")
    entries[1] = replace(draft, hash=draft.computed_hash())
    broken = verify(entries, entries[-1].head).broken
    assert broken is not None
    assert (broken.seq, broken.fault) == (3, "rewritten")


def test_a_missing_entry_is_named() -> None:
    entries = chain(5)
    head = entries[-1].head
    del entries[2]
    broken = verify(entries, head).broken
    assert broken is not None
    assert (broken.seq, broken.fault) == (3, "missing")


def test_entries_that_changed_places_are_named() -> None:
    entries = chain(5)
    swapped = [
        entries[0],
        replace(entries[2], seq=2),
        replace(entries[1], seq=3),
        *entries[3:],
    ]
    broken = verify(swapped, entries[-1].head).broken
    assert broken is not None
    assert (broken.seq, broken.fault) == (2, "reordered")
    doubled = [*entries[:3], entries[1], *entries[3:]]
    again = verify(doubled, entries[-1].head).broken
    assert again is not None
    assert (again.seq, again.fault) == (2, "reordered")


def test_a_cut_off_end_is_named_while_the_head_is_left() -> None:
    entries = chain(5)
    broken = verify(entries[:3], entries[-1].head).broken
    assert broken is not None
    assert (broken.seq, broken.fault) == (4, "truncated")


def test_an_end_that_was_cut_off_with_its_head_needs_the_anchor() -> None:
    entries = chain(5)
    anchor = Head.parse(entries[4].head.anchor)
    assert verify(entries[:3], entries[2].head).broken is None
    broken = verify(entries[:3], entries[2].head, anchor).broken
    assert broken is not None
    assert (broken.seq, broken.fault) == (4, "truncated")


def test_a_chain_that_was_rebuilt_needs_the_anchor() -> None:
    anchor = chain(3)[1].head
    forged: list[AuditEntry] = []
    head = Head()
    for entry in chain(3):
        forged.append(entry_after(head, "acme", AuditEvent("nobody", entry.action, entry.object), entry.at_us))
        head = forged[-1].head
    assert verify(forged, forged[-1].head).broken is None
    broken = verify(forged, forged[-1].head, anchor).broken
    assert broken is not None
    assert (broken.seq, broken.fault) == (2, "rewritten")


def test_an_anchor_of_earlier_still_holds_when_the_chain_grew() -> None:
    entries = chain(6)
    assert verify(entries, entries[-1].head, entries[2].head).broken is None


def test_entries_that_came_after_the_head_was_read_are_left_out() -> None:
    entries = chain(6)
    verdict = verify(entries, entries[3].head)
    assert (verdict.entries, verdict.broken) == (4, None)


def test_a_chain_is_walked_without_keeping_it() -> None:
    """A generator that can be read once, and whose entries are dropped as they are made."""

    def endless(count: int) -> Iterator[AuditEntry]:
        head = Head()
        for number in range(count):
            entry = entry_after(head, "acme", AuditEvent("a", "b", str(number)), number)
            head = entry.head
            yield entry

    last = Head()
    for entry in endless(2_000):
        last = entry.head
    assert verify(endless(2_000), last).entries == 2_000


def test_details_that_json_can_not_say_are_refused() -> None:
    with pytest.raises(CorruptArtifactError):
        entry_after(Head(), "acme", AuditEvent("a", "b", "c", details={"x": float("nan")}), 0)


@pytest.mark.parametrize(
    "anchor", ["", "1", "1:" + "g" * 64, "-1:" + "0" * 64, "1:" + "0" * 63, "1" * 40 + ":" + "0" * 64]
)
def test_an_anchor_that_is_none_is_refused_with_the_mend(anchor: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Head.parse(anchor)
    assert caught.value.mend


@given(st.integers(2, 8), st.data())
def test_no_change_of_any_stored_field_goes_unnoticed(length: int, data: st.DataObject) -> None:
    entries = chain(length)
    place = data.draw(st.integers(0, length - 1))
    field = data.draw(st.sampled_from(["seq", "at_us", "actor", "object", "details", "previous", "hash"]))
    old = getattr(entries[place], field)
    new = data.draw(st.integers(1, 99) if isinstance(old, int) else st.text(max_size=70))
    if new == old:
        return
    head = entries[-1].head
    entries[place] = replace(entries[place], **{field: new})
    assert verify(entries, head).broken is not None
