"""What rankings ask the store is answered together, and each gets the answer that it would get alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from idiolect.errors import UnavailableError
from idiolect.registry.resolution import Resolution, Standing
from idiolect_services.looks import Asking, Confirm, LookAgain, Question, Resolve, ResolveAnew, alone, answered

ASKED: list[Question] = [Resolve("t", "ann", "d"), None, LookAgain("t", "ann"), Resolve("t", "bob", None)]


class Store:
    """Says what it was asked for, and remembers how. Fails together or alone where it is told to."""

    def __init__(self, together: Exception | None = None, alone: str = "") -> None:
        self.together, self.alone = together, alone
        self.calls: list[str] = []

    def resolve(self, *asked: Any) -> Any:
        self.calls.append("resolve")
        return self._one(asked)

    def subject(self, *asked: Any) -> Any:
        self.calls.append("subject")
        return self._one(asked)

    def resolve_each(self, asked: Sequence[Any]) -> Any:
        return self._each("resolve_each", asked)

    def subject_each(self, asked: Sequence[Any]) -> Any:
        return self._each("subject_each", asked)

    def _one(self, asked: Any) -> Any:
        if asked[1] == self.alone:
            raise ZeroDivisionError
        return ("said", *asked)

    def _each(self, name: str, asked: Sequence[Any]) -> Any:
        self.calls.append(name)
        if self.together is not None:
            raise self.together
        return [self._one(one) for one in asked]


def said(*questions: Question) -> list[Any]:
    return [None if one is None else ("said", *one) for one in questions]


def test_several_questions_of_a_kind_are_one_call_and_a_single_one_is_asked_alone() -> None:
    store = Store()
    assert answered(store, ASKED) == said(*ASKED)  # type: ignore[arg-type]
    assert store.calls == ["resolve_each", "subject"]


def test_a_store_that_is_gone_is_asked_once_and_gone_for_all() -> None:
    gone = UnavailableError("gone.")
    store = Store(together=gone)
    assert answered(store, ASKED) == [gone, None, ("said", "t", "ann"), gone]  # type: ignore[arg-type]
    assert store.calls == ["resolve_each", "subject"]


def test_what_fails_for_one_fails_for_nobody_else() -> None:
    answers = answered(Store(alone="bob"), ASKED)  # type: ignore[arg-type]
    assert answers[:3] == said(*ASKED[:3])
    assert isinstance(answers[3], ZeroDivisionError)


def test_alone_each_question_is_answered_or_raised_where_it_was_asked() -> None:
    def asking() -> Asking[list[Any]]:
        heard: list[Any] = [(yield None), (yield Resolve("t", "ann", "d"))]
        try:
            yield LookAgain("t", "bob")
        except ZeroDivisionError:
            heard.append("raised")
        return [*heard, (yield LookAgain("t", "ann"))]

    store: Any = Store(alone="bob")
    assert alone(asking(), store) == [None, ("said", "t", "ann", "d"), "raised", ("said", "t", "ann")]


def test_what_nobody_catches_ends_it() -> None:
    def asking() -> Asking[None]:
        yield LookAgain("t", "bob")

    store: Any = Store(alone="bob")
    with pytest.raises(ZeroDivisionError):
        alone(asking(), store)


# --- what is remembered -----------------------------------------------------------------------------------------------


class Memory:
    """Recalls what it is told to, and remembers what it was told."""

    def __init__(self, **recalled: Resolution) -> None:
        self.recalled = recalled
        self.told: list[Any] = []
        self.judgements: list[bool] = []

    def recall(self, asked: Sequence[Any]) -> list[Resolution | None]:
        return [self.recalled.get(str(one[1])) for one in asked]

    def remember(self, resolved: Sequence[Any]) -> None:
        self.told += resolved

    def judged(self, holds: Sequence[bool]) -> None:
        self.judgements += holds


OLD = Resolution("g", None, None, None, mark="m", remembered=True)
NEW = Resolution("h", None, None, None, mark="n")


class Resolving(Store):
    def _one(self, asked: Any) -> Any:
        return NEW

    def standing_each(self, asked: Sequence[Any]) -> Any:
        self.calls.append("standing_each")
        return [Standing("g" if one[1] == "ann" else "h", None, None, None, "m") for one in asked]


def test_only_what_is_not_remembered_is_asked_for_and_then_it_is() -> None:
    store, memory = Resolving(), Memory(ann=OLD)
    asked: list[Question] = [Resolve("t", "ann", "d"), Resolve("t", "bob", "d"), ResolveAnew("t", "ann", None)]
    assert answered(store, asked, memory) == [OLD, NEW, NEW]  # type: ignore[arg-type]
    assert memory.told == [(asked[1], NEW), (asked[2], NEW)]
    assert store.calls == ["resolve_each"]


def test_what_is_remembered_is_compared_with_how_things_stand() -> None:
    store, memory = Resolving(), Memory()
    asked: list[Question] = [Confirm("t", name, "d", OLD) for name in ("ann", "bob")]
    assert answered(store, asked, memory) == [True, False]  # type: ignore[arg-type]
    assert (memory.judgements, memory.told) == ([True, False], [])
    assert answered(store, asked[1:], memory) == [False]  # type: ignore[arg-type]


def test_alone_nothing_is_recalled() -> None:
    def asking() -> Asking[Any]:
        return (yield Resolve("t", "ann", "d")), (yield Confirm("t", "ann", "d", OLD))

    store: Any = Resolving()
    assert alone(asking(), store) == (NEW, True)
