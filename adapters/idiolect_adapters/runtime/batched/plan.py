"""What one batch needs: the order of its rows, and for every family in it the weights of its rows, gathered once."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from idiolect.errors import InvalidInputError
from idiolect_adapters.runtime.batched.families import Family, Field, Part
from idiolect_adapters.runtime.batched.residents import Handle, Residents, Slot, check_held


class Applied(NamedTuple):
    """One adapter of a stack, and its strength in [0, 1]; at 0 it is left out, which changes no bit."""

    handle: Handle
    strength: float = 1.0


Stack = Sequence[Applied]


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The rows of one family. `strength_N` None: all are 1. Private tensors are [n, ...], shared ones [...]."""

    family: Family
    rows: slice | torch.Tensor
    strength_N: torch.Tensor | None
    tensors: Mapping[Field, torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Plan:
    """`order[i]` is the row of the caller's that must be row i of the batch: rows without any adapter come first, rows
    of one family side by side, so that most products work on slices, in place."""

    order: tuple[int, ...]
    blocks: tuple[Block, ...]
    lora: Mapping[str, tuple[tuple[int, Part], ...]]  # site -> (number of the block, its part there)
    replaced: Mapping[str, tuple[int, ...]]  # site -> numbers of blocks


class _Use(NamedTuple):
    slot: Slot
    strength: float
    turn: int  # how many adapters of the same family the row had before


@torch.inference_mode()
def make_plan(residents: Residents, stacks: Sequence[Stack]) -> Plan:
    """Raises InvalidInputError for a strength outside [0, 1] or a layer replaced twice, NotFoundError for an adapter
    that has been removed. Walks over rows, once per batch; forwards never do."""
    uses = [_uses(stack) for stack in stacks]
    kinds = [tuple([use.slot.family for use in row]) for row in uses]
    keys = {kind: _sort_key(kind) for kind in set(kinds)}
    order = sorted(range(len(stacks)), key=lambda row: (keys[kinds[row]], row))
    members: dict[tuple[int, int], list[tuple[int, _Use]]] = {}
    for position, row in enumerate(order):
        for use in uses[row]:
            members.setdefault((use.slot.family.number, use.turn), []).append((position, use))
    buffers: list[torch.Tensor] = []
    with residents.lock:
        for slot in {use.slot: None for row in uses for use in row}:
            check_held(slot)
        # By number of the family, never by who comes first: a row adds up in the same order in any company.
        blocks = tuple(_block(residents, members[key], buffers) for key in sorted(members))
    plan = Plan(tuple(order), blocks, _lora_sites(blocks), _replaced_sites(blocks))
    weakref.finalize(plan, residents.buffers.give_back, buffers).atexit = False
    return plan


def _uses(stack: Stack) -> list[_Use]:
    uses: list[_Use] = []
    turns: dict[Family, int] = {}
    replaced: set[str] = set()
    for handle, strength in stack:
        if not 0.0 <= strength <= 1.0:
            raise InvalidInputError(f"a strength of {strength} is not in [0, 1].")
        for slot in handle.slots if strength > 0.0 else ():
            family = slot.family
            turn = turns.get(family, 0)
            turns[family] = turn + 1
            uses.append(_Use(slot, strength, turn))
            if not replaced.isdisjoint(family.replaced):
                twice = min(replaced.intersection(family.replaced))
                raise InvalidInputError(f"two adapters of one stack replace layer {twice!r}.", mend="Use one.")
            replaced.update(family.replaced)
    return uses


def _sort_key(families: Sequence[Family]) -> tuple[bool, list[int], list[int]]:
    dense = sorted(family.number for family in families if not family.width)
    private = sorted(family.number for family in families if family.width)
    return bool(families), dense, private


def _block(residents: Residents, members: Sequence[tuple[int, _Use]], buffers: list[torch.Tensor]) -> Block:
    family = members[0][1].slot.family
    if family.width:
        buffers.append(residents.buffers.take(len(members) * family.width, family.dtype))
    positions = [position for position, _ in members]
    strengths = [use.strength for _, use in members]
    whole = all(strength == 1.0 for strength in strengths)
    return Block(
        family,
        _rows(positions, residents.device),
        None if whole else torch.tensor(strengths, device=residents.device),
        family.gather([use.slot.index for _, use in members], buffers[-1] if family.width else None),
    )


def _rows(positions: list[int], device: torch.device) -> slice | torch.Tensor:
    first, last = positions[0], positions[-1]
    if last - first + 1 == len(positions):
        return slice(first, last + 1)
    return torch.tensor(positions, device=device)


def _lora_sites(blocks: Sequence[Block]) -> dict[str, tuple[tuple[int, Part], ...]]:
    found: dict[str, tuple[tuple[int, Part], ...]] = {}
    for number, block in enumerate(blocks):
        for part in block.family.parts:
            found[part.site] = (*found.get(part.site, ()), (number, part))
    return found


def _replaced_sites(blocks: Sequence[Block]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for number, block in enumerate(blocks):
        for site in block.family.replaced:
            found[site] = (*found.get(site, ()), number)
    return found
