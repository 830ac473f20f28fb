"""Hooks, installed once, that add the running plan's products to what the model's linear layers return.

Which plan runs is a context variable, so threads and tasks do not see each other's; where none runs, the model is the
bare model, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from idiolect.errors import InvalidInputError
from idiolect_adapters.runtime.batched.families import Field
from idiolect_adapters.runtime.batched.plan import Block, Plan, Stack, make_plan
from idiolect_adapters.runtime.batched.products import add_up, down, per_row, replace, times_core
from idiolect_adapters.runtime.batched.residents import Residents


class _Pass:
    """One forward. Remembers the last group's products with A, for its siblings read the same tensor."""

    def __init__(self, runtime: BatchedRuntime, plan: Plan) -> None:
        self.runtime = runtime
        self.plan = plan
        self.group = ""
        self.input: torch.Tensor | None = None
        self.products: dict[int, torch.Tensor] = {}

    def apply(self, site: str, x: torch.Tensor, y: torch.Tensor) -> None:
        if len(x) != len(self.plan.order) or x.ndim not in (2, 3):
            raise InvalidInputError(
                f"layer {site!r} sees {list(x.shape)}, the plan has {len(self.plan.order)} rows.",
                mend="Run the plan's rows in its order, one row of the batch each, not packed.",
            )
        for number in self.plan.replaced.get(site, ()):
            self._replace(self.plan.blocks[number], site, x, y)
        for number, part in self.plan.lora.get(site, ()):
            block = self.plan.blocks[number]
            product = self._product(number, part.group, x)
            h = product[..., part.column : part.column + part.rank]
            core = block.tensors.get(Field("core", site))
            if core is not None:
                h = times_core(h, core)
            rows = y[block.rows]
            add_up(rows, h, block.tensors[Field("B", site)])
            put_back(rows, block, y)

    def _replace(self, block: Block, site: str, x: torch.Tensor, y: torch.Tensor) -> None:
        weight, bias = block.tensors[Field("weight", site)], block.tensors.get(Field("bias", site))
        rows = y[block.rows]
        replace(rows, x[block.rows], weight, bias, block.strength_N)
        put_back(rows, block, y)

    def _product(self, number: int, group: str, x: torch.Tensor) -> torch.Tensor:
        """[n, T, R]: the rows' strengths times A x, of all the group's sites."""
        if self.group != group or self.input is not x:
            self.group, self.input, self.products = group, x, {}
        if number not in self.products:
            block = self.plan.blocks[number]
            product = down(x[block.rows], block.tensors[Field("A", group)])
            if block.strength_N is not None:
                product *= per_row(block.strength_N, product)
            self.products[number] = product
        return self.products[number]


def put_back(rows: torch.Tensor, block: Block, y: torch.Tensor) -> None:
    """Rows that lie side by side are a view of `y`, others a copy."""
    if isinstance(block.rows, torch.Tensor):
        y.index_copy_(0, block.rows, rows)


_RUNNING: ContextVar[_Pass | None] = ContextVar("idiolect_batched_pass", default=None)


class BatchedRuntime:
    """A model with hooks, and the adapters in memory for it. Thread-safe."""

    def __init__(self, model: nn.Module) -> None:
        self.residents = Residents(model)
        self._hooks = [
            site.module.register_forward_hook(self._hook_for(name)) for name, site in self.residents.sites.items()
        ]

    def plan(self, stacks: Sequence[Stack]) -> Plan:
        return make_plan(self.residents, stacks)

    @contextmanager
    def running(self, plan: Plan) -> Iterator[None]:
        """Forwards of this thread or task that run inside have the plan's rows, in its order. No gradients."""
        token = _RUNNING.set(_Pass(self, plan))
        try:
            with torch.inference_mode():
                yield
        finally:
            _RUNNING.reset(token)

    def close(self) -> None:
        """The model is as it was."""
        for hook in self._hooks:
            hook.remove()

    def _hook_for(self, site: str) -> Any:
        def add_products(_module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            running = _RUNNING.get()
            if running is None or running.runtime is not self:
                return
            if site in running.plan.lora or site in running.plan.replaced:
                running.apply(site, inputs[0], output)

        return add_products
