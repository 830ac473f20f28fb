"""Stages that show nothing and remember their names."""

from __future__ import annotations

from collections.abc import Callable


class QuietStages:
    def __init__(self) -> None:
        self.names: list[str] = []

    def stage(self, name: str) -> Callable[[int, int], None]:
        self.names.append(name)
        return lambda done, total: None
