"""The recovery log: what was answered is in it, whatever happens to the process; what was changed is noticed."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from idiolect.audit import AuditEvent, Head, entry_after
from idiolect.errors import ConfigurationError, CorruptArtifactError
from idiolect.recovery import LoggedChange, continuation
from idiolect.stores.recovery_log import RecoveryLog


def chain(count: int, tenant: str = "acme", start: Head | None = None, reason: str = "") -> list[LoggedChange]:
    head, changes = start or Head(), []
    for number in range(count):
        entry = entry_after(head, tenant, AuditEvent("op", "reset", f"user {number}", reason), number)
        changes.append(LoggedChange(entry, {"state": {"subject": str(number)}}))
        head = entry.head
    return changes


@pytest.fixture
def log(tmp_path: Path) -> RecoveryLog:
    return RecoveryLog(tmp_path / "recovery" / "a.log")


def test_what_was_appended_is_read_in_order(log: RecoveryLog) -> None:
    changes = chain(5)
    log.append(changes[:2])
    log.append(changes[2:])
    assert list(log.read()) == changes
    assert log.last() == changes[-1]


def test_before_anything_was_logged_there_is_nothing(log: RecoveryLog) -> None:
    assert list(log.read()) == []
    assert log.last() is None


def test_long_lists_of_people_come_back_whole(log: RecoveryLog) -> None:
    people = [f"{number:032x}" for number in range(25_001)]
    first, second = chain(2)
    charged = LoggedChange(first.entry, {"run": {"id": "r"}, "subjects": people})
    log.append([charged, second])
    assert list(log.read()) == [charged, second]
    assert max(map(len, log.path.read_bytes().splitlines())) < 1 << 20


def test_only_its_owner_may_read_it(log: RecoveryLog) -> None:
    log.append(chain(1))
    assert log.path.stat().st_mode & 0o777 == 0o600


def test_wherever_a_crash_cuts_the_end_off_the_lines_before_it_stay_and_writing_goes_on(tmp_path: Path) -> None:
    changes = chain(3)
    whole = RecoveryLog(tmp_path / "whole.log")
    whole.append(changes)
    data = whole.path.read_bytes()
    ends = [0, *(at + 1 for at, byte in enumerate(data) if byte == ord("\n"))]
    for cut in range(0, len(data), 7):
        log = RecoveryLog(tmp_path / f"{cut}.log")
        log.path.write_bytes(data[:cut])
        kept = sum(end <= cut for end in ends) - 1
        assert list(log.read()) == changes[:kept]
        assert log.last() == (changes[kept - 1] if kept else None)
        log.append(changes[kept:])
        assert log.path.read_bytes() == data


def test_a_byte_that_was_changed_anywhere_is_noticed(log: RecoveryLog) -> None:
    log.append(chain(3))
    data = log.path.read_bytes()
    rng = random.Random(0)
    for at in rng.sample(range(len(data) - 1), 200):
        changed = bytearray(data)
        changed[at] ^= 1
        log.path.write_bytes(bytes(changed))
        with pytest.raises(CorruptArtifactError):
            list(log.read())


def test_a_line_that_was_removed_is_noticed(log: RecoveryLog) -> None:
    log.append(chain(4))
    lines = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(lines[0] + b"".join(lines[2:]))
    with pytest.raises(CorruptArtifactError, match="line 2"):
        list(log.read())


def test_writers_at_once_lose_nothing(log: RecoveryLog) -> None:
    def write(number: int) -> None:
        for change in chain(10, f"tenant-{number}"):
            RecoveryLog(log.path).append([change])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    found = list(log.read())
    assert len(found) == 80
    for number in range(8):
        assert [change for change in found if change.entry.tenant == f"tenant-{number}"] == chain(
            10, f"tenant-{number}"
        )


def test_what_follows_the_head_is_found_wherever_the_head_is() -> None:
    changes = chain(6)
    assert continuation("acme", Head(), changes) == changes
    for index in range(6):
        assert continuation("acme", changes[index].entry.head, changes) == changes[index + 1 :]


def test_a_gap_between_the_database_and_the_newest_change_is_refused() -> None:
    changes = chain(6)
    for gone in range(1, 5):
        with pytest.raises(ConfigurationError, match=f"lacks change {gone + 1} "):
            continuation("acme", Head(), changes[:gone] + changes[gone + 1 :])


def test_changes_that_were_logged_and_never_committed_are_dead_ends() -> None:
    changes = chain(4)
    never = chain(1, start=changes[1].entry.head, reason="crashed")
    assert continuation("acme", changes[0].entry.head, changes[:2] + never + changes[2:]) == changes[1:]
    assert continuation("acme", changes[1].entry.head, changes[:2] + never) == never  # at the end: finished now
    assert continuation("acme", changes[3].entry.head, changes + never) == []


@pytest.mark.parametrize("said", [{}, {"entry": {}, "extra": {}}, {"entry": None, "extra": {}}, {"entry": {"x": 1}}])
def test_what_is_no_change_is_refused(said: dict[str, Any]) -> None:
    with pytest.raises(CorruptArtifactError):
        LoggedChange.from_json(said)
