"""Adapters of one shape, side by side in one slab.

A family says which of its matrices every member has for itself, and which all of them share:

    plain LoRA              A and B private          two batched products
    one adapter, many rows  A and B shared           two dense products (a domain adapter)
    on a basis              A shared, B private      (user adapters on the reward head)
    core                    A and B shared, C private: y += B C A x

A member is one row of the slab, so a batch gathers all that its rows need in one copy. Rows in use lie side by side:
when a member goes the last row takes its place, and a slab that has become too large is replaced by a smaller one.

Ranks are padded with zeros to a few sizes that depend on the adapter alone: what a row's neighbours have must never
choose the kernel that computes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from idiolect.errors import IdiolectError, InvalidInputError

RANKS = (8, 16, 32, 64, 128, 256)
FIRST_CAPACITY, FIRST_NUMBERS = 8, 1 << 17  # rows, and the most numbers, of a slab for one member
MOST_EMPTY = 3  # times as many rows as members: then the slab is made smaller

Role = Literal["A", "B", "core", "weight", "bias"]


class Field(NamedTuple):
    """`A` of a group holds the A's of its sites one under the other; everything else belongs to one site."""

    role: Role
    place: str


@dataclass(frozen=True, slots=True)
class Part:
    """One LoRA target: its columns in the group's product with A."""

    site: str
    group: str
    rank: int
    column: int


Tensors = Mapping[Field, torch.Tensor]


def padded_rank(rank: int) -> int:
    found = next((size for size in RANKS if size >= rank), None)
    if found is None:
        raise InvalidInputError(f"a rank of {rank} is over the limit of {RANKS[-1]}.")
    return found


class Family:
    """Not thread-safe: Residents locks."""

    def __init__(
        self,
        number: int,
        parts: Sequence[Part],
        replaced: Sequence[str],
        private: Mapping[Field, tuple[int, ...]],
        shared: Tensors,
        options: tuple[torch.dtype, torch.device],
    ) -> None:
        self.number = number
        self.parts = tuple(parts)
        self.replaced = tuple(replaced)  # sites that members replace as a whole
        self.private = dict(private)
        self.shared = dict(shared)
        self.width = sum(math.prod(shape) for shape in private.values())
        self._slab = self._new_slab(0, options)
        self._generations: list[int] = []  # by slot
        self._row_of: list[int] = []  # by slot; -1: free
        self._slot_at: list[int] = []  # by row
        self._free: list[int] = []

    def _new_slab(self, capacity: int, options: tuple[torch.dtype, torch.device]) -> torch.Tensor:
        return torch.zeros(capacity, self.width, dtype=options[0], device=options[1])

    @property
    def dtype(self) -> torch.dtype:
        return self._slab.dtype

    @property
    def members(self) -> int:
        return len(self._slot_at)

    @property
    def is_basis(self) -> bool:
        """Whether members are written in what is shared, so that it outlives them."""
        return bool(self.shared and self.private)

    @property
    def member_bytes(self) -> int:
        return self.width * self._slab.element_size()

    @property
    def slab_bytes(self) -> int:
        return self._slab.numel() * self._slab.element_size()

    @property
    def shared_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.shared.values())

    def add(self, tensors_P: Tensors, count: int) -> list[tuple[int, int]]:
        """(slot, generation) of `count` new members; `tensors_P` holds [count, ...] for every private field."""
        slots = [self._free.pop() for _ in range(min(count, len(self._free)))]
        fresh = count - len(slots)
        slots += range(len(self._generations), len(self._generations) + fresh)
        self._generations += [0] * fresh
        self._row_of += [-1] * fresh
        first = self.members
        self._resize(first + count)
        for row, slot in enumerate(slots, first):
            self._row_of[slot] = row
        self._slot_at += slots
        if self.width:
            flat_P_W = torch.cat([tensors_P[field].reshape(count, -1) for field in self.private], dim=1)
            self._slab[first : first + count] = flat_P_W.to(self._slab)
        return [(slot, self._generations[slot]) for slot in slots]

    def _resize(self, members: int) -> None:
        first = max(1, min(FIRST_CAPACITY, FIRST_NUMBERS // max(1, self.width)))
        capacity = len(self._slab)
        if members > capacity:
            capacity = max(first, members, 2 * capacity)
        elif MOST_EMPTY * members <= capacity:
            capacity = max(first, 2 * members)
        if capacity != len(self._slab):
            slab = self._new_slab(capacity, (self._slab.dtype, self._slab.device))
            kept = min(capacity, len(self._slab))
            slab[:kept] = self._slab[:kept]
            self._slab = slab

    def holds(self, slot: int, generation: int) -> bool:
        return self._generations[slot] == generation

    def remove(self, slot: int) -> None:
        """Nobody can reach the slot's numbers from here on, and they are gone."""
        row, last = self._row_of[slot], self.members - 1
        self._slab[row] = self._slab[last]
        self._slab[last].zero_()
        self._slot_at[row] = self._slot_at[last]
        self._row_of[self._slot_at[row]] = row
        self._slot_at.pop()
        self._generations[slot] += 1
        self._row_of[slot] = -1
        self._free.append(slot)
        self._resize(last)

    def check_integrity(self) -> None:
        """Raises unless every slot is free or has a row of its own, the other rows are zero, and all numbers are
        finite."""
        if sorted([*self._slot_at, *self._free]) != list(range(len(self._generations))):
            raise _unbalanced("slots don't balance")
        if [self._row_of[slot] for slot in self._slot_at] != list(range(self.members)):
            raise _unbalanced("rows don't balance")
        if self.members > len(self._slab) or self._slab[self.members :].any():
            raise _unbalanced("free rows are not empty")
        if not all(bool(torch.isfinite(tensor).all()) for tensor in (self._slab, *self.shared.values())):
            raise _unbalanced("weights are damaged")

    def gather(self, slots: Sequence[int], buffer: torch.Tensor | None) -> dict[Field, torch.Tensor]:
        """Copies [n, ...] of the members' private fields, in `buffer`, and the shared ones [...] as they are.

        A family without private fields needs no buffer.
        """
        gathered = dict(self.shared)
        if buffer is not None:
            index_N = torch.tensor([self._row_of[slot] for slot in slots], device=self._slab.device)
            rows_N_W = buffer[: len(slots) * self.width].view(len(slots), self.width)
            torch.index_select(self._slab, 0, index_N, out=rows_N_W)
            pieces = torch.split(rows_N_W, [math.prod(shape) for shape in self.private.values()], dim=1)
            for (field, shape), piece in zip(self.private.items(), pieces, strict=True):
                gathered[field] = piece.view(len(slots), *shape)
        return gathered


def _unbalanced(what: str) -> IdiolectError:
    return IdiolectError(f"the batched runtime's {what}.", mend="Restart this process.")


def stacked_rows(pieces: Sequence[tuple[Part, torch.Tensor]]) -> torch.Tensor:
    """[..., sum of padded ranks, I] from the [..., rank, I] of a group's parts."""
    return torch.cat([pad(A, -2, part.rank) for part, A in pieces], dim=-2)


def pad(tensor: torch.Tensor, dimension: int, size: int) -> torch.Tensor:
    """Zeros after the end of `dimension` (-1 or -2), up to `size`."""
    missing = size - tensor.shape[dimension]
    return torch.nn.functional.pad(tensor, (0, missing) if dimension == -1 else (0, 0, 0, missing))
