"""What a server takes from the process that it runs in: clocks, sleep and threads. A simulation brings its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

from idiolect.resets.fence import uptime


def threads(name: str, count: int) -> Executor:
    return ThreadPoolExecutor(count, thread_name_prefix=f"idiolect-{name}")


@dataclass(frozen=True, slots=True)
class Process:
    """`uptime` and `sleep` go by the same clock: resets are fenced by it (see `idiolect.resets.fence`)."""

    monotonic: Callable[[], float] = time.monotonic
    uptime: Callable[[], float] = uptime
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    threads: Callable[[str, int], Executor] = threads
