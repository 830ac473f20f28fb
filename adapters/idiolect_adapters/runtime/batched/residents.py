"""The adapters in memory. A handle names one; it is never reused, so a handle that was removed is refused for ever."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import nn

from idiolect.errors import CorruptArtifactError, IdiolectError, InvalidInputError, NotFoundError
from idiolect_adapters.lora.spec import LinearShape, LoraAdapter
from idiolect_adapters.lora.weights import adapter_from, tensors_of
from idiolect_adapters.precision import Int8Linear
from idiolect_adapters.runtime.batched.buffers import Buffers
from idiolect_adapters.runtime.batched.families import Family, Field, Part, Tensors, pad, padded_rank, stacked_rows
from idiolect_adapters.runtime.batched.sites import Site, find_sites


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    family: Family
    index: int
    generation: int


@dataclass(frozen=True, slots=True, eq=False)
class Handle:
    """One adapter; more than one slot where its layers have different dtypes."""

    slots: tuple[Slot, ...]

    @property
    def gathered_bytes(self) -> int:
        """What a plan copies of it for each row that it is on."""
        return sum(slot.family.member_bytes for slot in self.slots)


@dataclass(frozen=True, slots=True)
class ResidentStats:
    families: int
    members: int
    bytes: int


class Residents:
    """Thread-safe. What a plan has gathered stays whole, whatever is removed afterwards."""

    def __init__(self, model: nn.Module) -> None:
        self.sites = find_sites(model)
        self.device = next(model.parameters()).device
        self._families: dict[object, Family] = {}
        self._numbers = count()
        self.lock = threading.Lock()
        self.buffers = Buffers(self.device)

    @torch.inference_mode()
    def add(self, adapter: LoraAdapter, *, shared: bool = False) -> Handle:
        """`shared`: many rows of a batch will use it (a domain's adapter), so it gets dense products of its own; each
        such adapter in a batch costs a few calls per layer. Of the others any number costs the same calls.

        Raises InvalidInputError if the model has no such layer, CorruptArtifactError for a tensor that is missing, of
        another shape, or not finite. Then nothing has changed.
        """
        check_fits(adapter, self.sites)
        parts = self._by_dtype(adapter)
        for dtype, _, tensors, _ in parts:
            check_finite(tensors, dtype)
        with self.lock:
            return Handle(tuple(self._add_of_one_dtype(*of_dtype, shared) for of_dtype in parts))

    def _by_dtype(self, adapter: LoraAdapter) -> list[tuple[torch.dtype, list[Part], Tensors, list[str]]]:
        found: list[tuple[torch.dtype, list[Part], Tensors, list[str]]] = []
        names = sorted([*adapter.pairs, *adapter.saved])
        for dtype in dict.fromkeys(self.sites[name].dtype for name in names):
            ours = [name for name in names if self.sites[name].dtype == dtype]
            parts = parts_of(
                {name: adapter.spec.rank_pattern[name] for name in ours if name in adapter.pairs}, self.sites
            )
            replaced = [name for name in ours if name in adapter.saved]
            found.append((dtype, parts, _tensors(adapter, parts, replaced), replaced))
        return found

    def _add_of_one_dtype(
        self, dtype: torch.dtype, parts: list[Part], tensors: Tensors, replaced: list[str], shared: bool
    ) -> Slot:
        private = {} if shared else {field: tuple(tensor.shape) for field, tensor in tensors.items()}
        key = object() if shared else ("lora", dtype, tuple(parts), tuple(replaced))
        if key not in self._families:
            dense = {field: tensor.to(self.device, dtype) for field, tensor in tensors.items()} if shared else {}
            self._families[key] = self._new_family(parts, replaced, private, dense, dtype)
        return self._members(self._families[key], {field: tensor[None] for field, tensor in tensors.items()}, 1)[0]

    def _new_family(
        self,
        parts: Sequence[Part],
        replaced: Sequence[str],
        private: Mapping[Field, tuple[int, ...]],
        shared: Tensors,
        dtype: torch.dtype,
    ) -> Family:
        return Family(next(self._numbers), parts, replaced, private, shared, (dtype, self.device))

    @torch.inference_mode()
    def basis_family(self, site: str, A_K_I: torch.Tensor) -> Family:
        """For adapters on one layer that share this frozen A; members are [P, O, K]."""
        (part,) = parts_of({site: len(A_K_I)}, self.sites)
        outputs, dtype = self.sites[site].module.out_features, self.sites[site].dtype
        shared = {Field("A", part.group): pad(A_K_I, -2, part.rank).to(self.device, dtype)}
        return self._keep([part], {Field("B", site): (outputs, part.rank)}, shared, dtype)

    @torch.inference_mode()
    def core_family(self, site: str, A_R_I: torch.Tensor, B_O_R: torch.Tensor) -> Family:
        """For adapters on one layer that share A and B; members are cores [P, R, R]."""
        (part,) = parts_of({site: len(A_R_I)}, self.sites)
        dtype = self.sites[site].dtype
        shared = {
            Field("A", part.group): pad(A_R_I, -2, part.rank).to(self.device, dtype),
            Field("B", site): pad(B_O_R, -1, part.rank).to(self.device, dtype),
        }
        return self._keep([part], {Field("core", site): (part.rank, part.rank)}, shared, dtype)

    def _keep(
        self, parts: list[Part], private: Mapping[Field, tuple[int, ...]], shared: Tensors, dtype: torch.dtype
    ) -> Family:
        with self.lock:
            family = self._new_family(parts, [], private, shared, dtype)
            self._families[object()] = family
        return family

    @torch.inference_mode()
    def add_members(self, family: Family, values_P: torch.Tensor) -> list[Handle]:
        """New members of a basis or core family, their scale included: [P, O, K] or [P, R, R]."""
        (field, shape) = next(iter(family.private.items()))
        padded_P = pad(values_P, -1, shape[1])
        if field.role == "core":
            padded_P = pad(padded_P, -2, shape[0])
        if tuple(padded_P.shape[1:]) != shape:
            raise InvalidInputError(f"members of {field.place!r} have the shape {list(values_P.shape[1:])}.")
        if not torch.isfinite(values_P).all():
            raise CorruptArtifactError(f"members of {field.place!r} hold values that are not finite.")
        with self.lock:
            return [Handle((slot,)) for slot in self._members(family, {field: padded_P}, len(values_P))]

    def _members(self, family: Family, tensors_P: Tensors, number: int) -> list[Slot]:
        return [Slot(family, index, generation) for index, generation in family.add(tensors_P, number)]

    @torch.inference_mode()
    def remove(self, handle: Handle) -> None:
        """Raises NotFoundError if it was removed before. What no adapter needs any more is freed; bases stay."""
        with self.lock:
            for slot in handle.slots:
                check_held(slot)
            for slot in handle.slots:
                slot.family.remove(slot.index)
            families = self._families.items()
            self._families = {key: family for key, family in families if family.members or family.is_basis}

    def check_integrity(self) -> None:
        """Raises if the books don't balance or weights were damaged."""
        with self.lock:
            for family in self._families.values():
                family.check_integrity()
                if not family.members and not family.is_basis:
                    raise IdiolectError("the batched runtime keeps what nobody needs.", mend="Restart this process.")

    def stats(self) -> ResidentStats:
        with self.lock:
            families = list(self._families.values())
            held = sum(family.slab_bytes + family.shared_bytes for family in families)
            return ResidentStats(len(families), sum(family.members for family in families), held)


def check_held(slot: Slot) -> None:
    if not slot.family.holds(slot.index, slot.generation):
        raise NotFoundError("this adapter has been removed.", mend="Add it again.")


def parts_of(ranks: Mapping[str, int], sites: Mapping[str, Site]) -> list[Part]:
    """Columns count from 0 in every group."""
    parts: list[Part] = []
    columns: dict[str, int] = {}
    for name, rank in sorted(ranks.items()):
        group, padded = sites[name].group, padded_rank(rank)
        parts.append(Part(name, group, padded, columns.get(group, 0)))
        columns[group] = columns.get(group, 0) + padded
    return parts


def check_fits(adapter: LoraAdapter, sites: Mapping[str, Site]) -> None:
    """Exactly the tensors that its spec says, of the shapes that the model needs, and finite."""
    for name in (*adapter.pairs, *adapter.saved):
        if name not in sites:
            raise InvalidInputError(f"the model has no linear layer {name!r}.", mend="Use an adapter of this model.")
    model = {name: LinearShape(*_shape(site.module)) for name, site in sites.items()}
    tensors = tensors_of(adapter)
    adapter_from(tensors, adapter.spec, model)
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CorruptArtifactError(f"tensor {name!r} holds values that are not finite.", mend="Train it again.")


def _shape(module: nn.Linear | Int8Linear) -> tuple[int, int, bool]:
    return module.out_features, module.in_features, module.bias is not None


def check_finite(tensors: Tensors, dtype: torch.dtype) -> None:
    """Also as they will be: scaled, and in the layer's dtype."""
    for field, tensor in tensors.items():
        if not torch.isfinite(tensor.to(dtype)).all():
            name = f"{field.place}.lora_{field.role}.weight" if field.role in ("A", "B") else field.place
            raise CorruptArtifactError(f"tensor {name!r} holds values that are not finite once scaled, in {dtype}.")


def _tensors(adapter: LoraAdapter, parts: Sequence[Part], replaced: Sequence[str]) -> dict[Field, torch.Tensor]:
    """The scale goes into B."""
    tensors: dict[Field, torch.Tensor] = {}
    for group in dict.fromkeys(part.group for part in parts):
        pieces = [(part, adapter.pairs[part.site].A_R_I.float()) for part in parts if part.group == group]
        tensors[Field("A", group)] = stacked_rows(pieces)
    for part in parts:
        B_O_R = adapter.pairs[part.site].B_O_R.float() * adapter.spec.scale(part.site)
        tensors[Field("B", part.site)] = pad(B_O_R, -1, part.rank)
    for name in replaced:
        saved = adapter.saved[name]
        tensors[Field("weight", name)] = saved.weight_O_I.float()
        if saved.bias_O is not None:
            tensors[Field("bias", name)] = saved.bias_O.float()
    return tensors
