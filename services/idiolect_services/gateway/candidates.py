"""Getting n candidates out of an upstream that may not do `n`, and reading what came. Half an answer is an answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from idiolect_services.gateway.statuses import StatusError

AT_ONCE = 4  # requests of one completion that are under way together
_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")

Post = Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Candidate:
    """`choice` is as the upstream sent it. `text` is None where there is nothing to rank: a refusal, a tool call."""

    choice: dict[str, Any]
    text: str | None


@dataclass(frozen=True, slots=True)
class Batch:
    """What came. `failed` counts requests without an answer, of which another one had."""

    candidates: tuple[Candidate, ...]
    model: str
    usage: dict[str, int]
    created: int
    failed: int


async def gather(post: Post, body: Mapping[str, Any], n: int) -> Batch:
    """Up to `n` candidates. Raises StatusError if not a single one came."""
    first = await _first(post, body, n)
    batches = [first] if first is not None else []
    missing = n - sum(len(batch.candidates) for batch in batches)
    if missing > 0:
        batches += await _singles(post, body, missing, some=bool(batches))
    return _merged(batches, n)


async def _first(post: Post, body: Mapping[str, Any], n: int) -> Batch | None:
    """One request for all. None if the upstream refused, which may be for its `n`."""
    try:
        return _batch(await post({**body, "n": n} if n > 1 else body))
    except StatusError as error:
        if n == 1 or error.code != "upstream_rejected":
            raise
        return None


async def _singles(post: Post, body: Mapping[str, Any], count: int, *, some: bool) -> list[Batch]:
    """One request each. The first trouble is raised if nothing came at all."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def one() -> Batch:
        async with slots:
            return _batch(await post(body))

    # If nothing came yet, one goes ahead: what was refused for another reason than `n` is not asked for n times.
    alone = [] if some else [await one()]
    rest = await asyncio.gather(*(one() for _ in range(count - len(alone))), return_exceptions=True)
    batches = list(alone)
    for outcome in rest:
        if isinstance(outcome, Batch):
            batches.append(outcome)
        elif isinstance(outcome, StatusError):
            batches.append(Batch((), "", {}, 0, failed=1))
        else:
            raise outcome
    return batches


def _merged(batches: list[Batch], n: int) -> Batch:
    candidates = tuple(candidate for batch in batches for candidate in batch.candidates)[:n]
    if not candidates:
        raise _unusable("it sent no choice")
    usage = {name: sum(batch.usage.get(name, 0) for batch in batches) for name in _COUNTS}
    first = next(batch for batch in batches if batch.candidates)
    return Batch(candidates, first.model, usage, first.created, sum(batch.failed for batch in batches))


def _batch(answer: Mapping[str, Any]) -> Batch:
    """Raises StatusError for what is not a chat completion."""
    choices = answer.get("choices")
    if not isinstance(choices, list) or not all(_is_choice(choice) for choice in choices):
        raise _unusable("its answer is not a chat completion")
    usage = answer.get("usage")
    counted = {name: _count(usage.get(name)) for name in _COUNTS} if isinstance(usage, dict) else {}
    model, created = answer.get("model"), answer.get("created")
    return Batch(
        tuple(Candidate(choice, _text(choice["message"])) for choice in choices),
        model if isinstance(model, str) else "",
        counted,
        _count(created) or int(time.time()),
        failed=0,
    )


def _is_choice(choice: object) -> bool:
    return isinstance(choice, dict) and isinstance(choice.get("message"), dict)


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53 else 0


def _text(message: Mapping[str, Any]) -> str | None:
    content = message.get("content")
    usable = isinstance(content, str) and content != "" and not message.get("tool_calls") and "\x00" not in content
    return content if usable else None


def _unusable(what: str) -> StatusError:
    return StatusError(
        502,
        f"the upstream can't be used: {what}.",
        mend="Check that it speaks OpenAI's chat completions.",
        code="upstream_failed",
    )
