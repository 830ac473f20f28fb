"""A server's background work goes on after whatever it met, says so once, and ends when it is told to."""

from __future__ import annotations

import logging
import threading

import pytest

from idiolect.errors import UnavailableError
from idiolect_services.periodic import Periodic


class Work(Periodic):
    """Ends by itself after as many times as there are `outcomes`, of which errors are raised."""

    def __init__(self, *outcomes: Exception | None, seconds: float = 0.001, begins: bool = False) -> None:
        super().__init__("work", seconds, begins=begins)
        self.outcomes, self.times, self.done = outcomes, 0, threading.Event()

    def run_once(self) -> None:
        self.times += 1
        if self.times >= len(self.outcomes):
            self.done.set()
        outcome = self.outcomes[self.times - 1] if self.times <= len(self.outcomes) else None
        if outcome is not None:
            raise outcome


def run(work: Work) -> Work:
    work.start()
    assert work.done.wait(60)
    work.stop()
    return work


def test_it_goes_on_after_errors_and_says_each_trouble_once(caplog: pytest.LogCaptureFixture) -> None:
    away, bug = UnavailableError("away."), ValueError("a bug")
    with caplog.at_level(logging.WARNING, "idiolect.work"):
        work = run(Work(away, away, bug, away, None, away, None))
    assert work.times >= 7
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said[0] == ("WARNING", "work is put off: away.")
    assert [level for level, _ in said] == ["WARNING", "ERROR", "WARNING"]


@pytest.mark.parametrize("begins", [True, False])
def test_it_begins_at_once_only_if_it_is_to(begins: bool) -> None:
    work = Work(None, seconds=3600.0, begins=begins)
    work.start()
    if begins:
        assert work.done.wait(60)
    work.stop()
    assert work.times == begins


def test_what_is_being_done_can_ask_whether_to_go_on() -> None:
    work = Work(None)
    assert work.goes_on()
    run(work)
    assert not work.goes_on()
