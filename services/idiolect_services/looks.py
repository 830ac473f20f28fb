"""What a ranking asks the store while it is computed: alone, or together with other rankings that ask at the same time.

Whoever asks is a generator that yields its questions and is sent what the store says, or has the store's error raised.
So the same code is answered one question at a time on a thread, and in step with others on the event loop, where one
statement answers them all. A bare `yield` only waits for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar

from idiolect.errors import ConfigurationError, UnavailableError
from idiolect.registry.resolution import Resolution
from idiolect.stores.ports import Store
from idiolect.stores.redis.resolutions import RememberedResolutions

# A store that is gone, busy, damaged or wrongly set: whatever it is, it confirms nothing.
STORE_TROUBLE = (UnavailableError, ConfigurationError)

Given = TypeVar("Given")


class Resolve(NamedTuple):
    """Answered with a Resolution, which may be a remembered one."""

    tenant: str
    subject: str | None
    domain: str | None


class ResolveAnew(NamedTuple):
    """Answered with a Resolution that was read now."""

    tenant: str
    subject: str | None
    domain: str | None


class Confirm(NamedTuple):
    """Answered with whether a remembered resolution is what would be read now."""

    tenant: str
    subject: str | None
    domain: str | None
    remembered: Resolution


class LookAgain(NamedTuple):
    """Answered with a SubjectState."""

    tenant: str
    subject: str


Question = Resolve | ResolveAnew | Confirm | LookAgain | None
Asking = Generator[Question, Any, Given]


def alone(asking: Asking[Given], store: Store) -> Given:
    """What it gives in the end, or raises. Each question is answered by itself, and nothing from memory."""
    try:
        question = next(asking)
        while True:
            try:
                answer = _answer(store, question)
            except Exception as error:
                question = asking.throw(error)
            else:
                question = asking.send(answer)
    except StopIteration as done:
        given: Given = done.value
        return given


def answered(store: Store, questions: Sequence[Question], memory: RememberedResolutions | None = None) -> list[Any]:
    """An answer or an exception for each; those of one kind see the store in one moment."""
    answers: dict[int, Any] = {} if memory is None else _recalled(memory, questions)
    kinds: list[tuple[tuple[type, ...], Callable[[Sequence[Any]], Sequence[Any]]]] = [
        ((Resolve, ResolveAnew), store.resolve_each),
        ((Confirm,), partial(_confirmed, store)),
        ((LookAgain,), store.subject_each),
    ]
    for kind, each in kinds:
        asked = {place: one for place, one in enumerate(questions) if isinstance(one, kind) and place not in answers}
        answers.update(zip(asked, _answers(store, list(asked.values()), each), strict=True))
    if memory is not None:
        _learn(memory, [(question, answers.get(place)) for place, question in enumerate(questions)])
    return [answers.get(place) for place in range(len(questions))]


def _recalled(memory: RememberedResolutions, questions: Sequence[Question]) -> dict[int, Any]:
    """By place."""
    asked = {place: one for place, one in enumerate(questions) if isinstance(one, Resolve)}
    found = memory.recall(list(asked.values()))
    return {place: one for place, one in zip(asked, found, strict=True) if one is not None}


def _learn(memory: RememberedResolutions, answers: Sequence[tuple[Question, Any]]) -> None:
    """Remember what was read now, and count what has become of what was remembered."""
    read = [
        (question, answer)
        for question, answer in answers
        if isinstance(question, Resolve | ResolveAnew) and isinstance(answer, Resolution) and not answer.remembered
    ]
    memory.remember(read)
    memory.judged([answer is True for question, answer in answers if isinstance(question, Confirm)])


def _confirmed(store: Store, asked: Sequence[Confirm]) -> list[bool]:
    standings = store.standing_each([one[:3] for one in asked])
    return [now.agrees(one.remembered, one.domain) for one, now in zip(asked, standings, strict=True)]


def _answers(store: Store, asked: Sequence[Any], each: Callable[[Sequence[Any]], Sequence[Any]]) -> Sequence[Any]:
    if len(asked) > 1:
        with suppress(Exception):  # what is wrong with one of them must not fail the others: each is asked alone
            try:
                return each(asked)
            except STORE_TROUBLE as error:
                return [error] * len(asked)
    return [_answer_or_error(store, one) for one in asked]


def _answer_or_error(store: Store, question: Question) -> Any:
    try:
        return _answer(store, question)
    except Exception as error:
        return error


def _answer(store: Store, question: Question) -> Any:
    if isinstance(question, Resolve | ResolveAnew):
        return store.resolve(*question)
    if isinstance(question, Confirm):
        return _confirmed(store, [question])[0]
    return None if question is None else store.subject(*question)
