"""What a ranking asks the store while it is computed: alone, or together with other rankings that ask at the same time.

Whoever asks is a generator that yields its questions and is sent what the store says, or has the store's error raised.
So the same code is answered one question at a time on a thread, and in step with others on the event loop, where one
statement answers them all. A bare `yield` only waits for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from idiolect.errors import ConfigurationError, UnavailableError
from idiolect.stores.ports import Store

# A store that is gone, busy, damaged or wrongly set: whatever it is, it confirms nothing.
STORE_TROUBLE = (UnavailableError, ConfigurationError)

Given = TypeVar("Given")


class Resolve(NamedTuple):
    """Answered with a Resolution."""

    tenant: str
    subject: str | None
    domain: str | None


class LookAgain(NamedTuple):
    """Answered with a SubjectState."""

    tenant: str
    subject: str


Question = Resolve | LookAgain | None
Asking = Generator[Question, Any, Given]


def alone(asking: Asking[Given], store: Store) -> Given:
    """What it gives in the end, or raises. Each question is answered by itself."""
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


def answered(store: Store, questions: Sequence[Question]) -> list[Any]:
    """An answer or an exception for each; those of one kind see the store in one moment."""
    answers: list[Any] = [None] * len(questions)
    resolves = {place: asked for place, asked in enumerate(questions) if isinstance(asked, Resolve)}
    looks = {place: asked for place, asked in enumerate(questions) if isinstance(asked, LookAgain)}
    for asked, each in ((resolves, store.resolve_each), (looks, store.subject_each)):
        for place, answer in zip(asked, _answers(store, list(asked.values()), each), strict=True):
            answers[place] = answer
    return answers


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
    if isinstance(question, Resolve):
        return store.resolve(*question)
    return None if question is None else store.subject(*question)
