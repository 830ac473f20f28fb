"""What is written of an answer in one go leaves in one piece, and nothing of it is held for long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from idiolect_services.gateway.gathered import MOST, Gathered


class Below(asyncio.Transport):
    """What the event loop would be asked to send."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[bytes] = []

    def write(self, data: Any) -> None:
        self.told.append(bytes(data))

    def close(self) -> None:
        self.told.append(b"closed")

    def is_closing(self) -> bool:
        return b"closed" in self.told


def played(play: Callable[[Gathered], None]) -> tuple[list[bytes], list[bytes]]:
    """What was sent when `play` was over, and what one round of the event loop later."""

    async def run() -> tuple[list[bytes], list[bytes]]:
        below = Below()
        play(Gathered(below, asyncio.get_running_loop()))
        at_once = list(below.told)
        await asyncio.sleep(0)
        return at_once, below.told

    return asyncio.run(run())


def writing(*pieces: bytes) -> Callable[[Gathered], None]:
    def play(transport: Gathered) -> None:
        for piece in pieces:
            transport.write(piece)

    return play


def test_head_and_body_leave_in_one_piece_in_their_order() -> None:
    assert played(writing(b"head ", b"body", b"")) == ([], [b"head body"])


def test_a_head_alone_waits_for_no_body() -> None:
    assert played(writing(b"head")) == ([], [b"head"])


def test_what_is_flushed_leaves_at_once_and_only_once() -> None:
    def play(transport: Gathered) -> None:
        writing(b"head ", b"body")(transport)
        transport.flush()
        transport.flush()

    assert played(play) == ([b"head body"], [b"head body"])


def test_what_comes_after_a_flush_leaves_after_it() -> None:
    def play(transport: Gathered) -> None:
        transport.write(b"first")
        transport.flush()
        transport.write(b"second")

    assert played(play) == ([b"first"], [b"first", b"second"])


def test_a_long_answer_is_not_held_so_that_a_slow_reader_is_noticed() -> None:
    long = bytes(MOST)
    assert played(writing(b"head ", long)) == ([b"head " + long], [b"head " + long])


def test_closing_sends_what_is_held_before() -> None:
    def play(transport: Gathered) -> None:
        transport.write(b"last words")
        transport.close()
        assert transport.is_closing()

    assert played(play) == ([b"last words", b"closed"], [b"last words", b"closed"])


@pytest.mark.parametrize("nothing", [b"", bytearray()])
def test_nothing_is_not_sent(nothing: bytes) -> None:
    assert played(writing(nothing)) == ([], [])
