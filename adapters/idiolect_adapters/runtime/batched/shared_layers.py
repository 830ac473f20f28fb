"""Layers below the first adapted one, computed once per text, however many rows with different stacks it has.

A batch goes in as its texts and comes out as its rows: where the first adapted layer begins, every text is copied to
each of its rows. Which copying runs is a context variable, as in forward.py; where none runs nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True, slots=True, eq=False)
class _Copying:
    owner: SharedLayers
    first: int
    text_of_row_R: torch.Tensor
    texts: int

    def rows(self, value: Any) -> Any:
        """Whatever is one entry per text becomes one per row: the hidden states before the first layer, masks and
        positions before each. One vector is never that, whatever its length."""
        if isinstance(value, torch.Tensor):
            return value[self.text_of_row_R] if value.ndim > 1 and len(value) == self.texts else value
        if isinstance(value, tuple):
            return tuple(self.rows(one) for one in value)
        return value


_RUNNING: ContextVar[_Copying | None] = ContextVar("idiolect_shared_layers", default=None)


class SharedLayers:
    """The layers of one model, by the names that its adapters use."""

    def __init__(self, model: nn.Module) -> None:
        lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
        name, layers = max(lists, key=lambda one: len(one[1]), default=("", nn.ModuleList()))
        self._prefix = f"{name}."
        self._hooks = [
            layer.register_forward_pre_hook(self._hook_for(number), with_kwargs=True)
            for number, layer in enumerate(layers)
        ]

    def first_of(self, targets: Iterable[str]) -> int:
        """The first layer that changes; 0 also for what lies in no layer."""
        return min((self._number(target) for target in targets), default=0)

    def _number(self, target: str) -> int:
        number = target.removeprefix(self._prefix).partition(".")[0]
        return int(number) if target.startswith(self._prefix) and number.isdecimal() else 0

    @contextmanager
    def copying(self, first: int, text_of_row_R: torch.Tensor, texts: int) -> Iterator[bool]:
        """Whether forwards inside take texts and give rows; else they must be given the rows themselves."""
        copies = bool(self._hooks) and first > 0 and len(text_of_row_R) > texts
        token = _RUNNING.set(_Copying(self, first, text_of_row_R, texts) if copies else None)
        try:
            yield copies
        finally:
            _RUNNING.reset(token)

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hook_for(self, number: int) -> Any:
        def copy(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            running = _RUNNING.get()
            if running is None or running.owner is not self or number < running.first:
                return None
            return running.rows(args), {name: running.rows(value) for name, value in kwargs.items()}

        return copy
