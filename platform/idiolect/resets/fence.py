"""How a reset reaches responses that other processes have under way: by time.

Every response that names a person leaves within ANSWER_SECONDS of the moment at which the last look at the person's
generation *began*, or looks again. A reset answers RESET_SECONDS after its commit. So when it answers, whatever was
looked up before the commit has left, or can't leave any more.

That needs no message to arrive and no process to be alive, only clocks that run equally fast to within a sixth. What
remains is a process that the system stops in the microseconds between reading its clock and writing to the socket.

The two are constants of the code: processes that disagree about them would break the promise.
"""

from __future__ import annotations

import time

ANSWER_SECONDS = 0.025
RESET_SECONDS = 0.030


def uptime() -> float:
    """Seconds that also pass while the machine sleeps, where the system has such a clock."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def may_leave(looked_at: float, now: float) -> bool:
    """Whether a response may leave now, whose last look at the generation began at `looked_at`."""
    return now - looked_at < ANSWER_SECONDS
