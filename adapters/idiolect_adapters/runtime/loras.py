"""LoRAs of any layers, served: verified, kept for one global model, and applied to many rows in one forward.

An inner layer's LoRA moves the encoder's pooled output p to p'. The features of a text are then [p', what stands
beside it], where the latter (counts, and the text kernel's outputs) is that of the bare model: no adapter moves it. The
head reads them as it reads the bare ones, so head adapters work on top, and a LoRA on `score` adds
s * B A (features - mean). See deploy/decisions/0014.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from idiolect.canonical import canonical_json
from idiolect.errors import CorruptArtifactError, NotFoundError
from idiolect.ids import sha256_hex
from idiolect.registry.lora_layout import LoraLayout
from idiolect.registry.manifest import ReleaseTemplate
from idiolect.registry.weights import Weights
from idiolect_adapters.lora.peft_format import SCORE
from idiolect_adapters.lora.proof import PROBES, LoadProof, check_proof, prove
from idiolect_adapters.lora.reward_model import RewardModel
from idiolect_adapters.lora.spec import LinearShape, LoraAdapter, LoraSpec, linear_shapes
from idiolect_adapters.lora.weights import adapter_from
from idiolect_adapters.padding import Padding
from idiolect_adapters.preference import PreferenceModel, beside_features, project_features
from idiolect_adapters.runtime.batched.families import padded_rank
from idiolect_adapters.runtime.batched.forward import BatchedRuntime
from idiolect_adapters.runtime.batched.plan import Applied, Plan
from idiolect_adapters.runtime.batched.residents import Handle, ResidentStats
from idiolect_adapters.runtime.batched.shared_layers import SharedLayers

# Of what one batch copies of people's LoRAs, each for each of its rows: a large one would otherwise take its size times
# the rows of a batch.
MOST_GATHERED_BYTES = 64 << 20

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Lora:
    """One verified adapter in memory. While anybody holds it, it stays as it is; then its memory is freed.

    `identity` covers weights, ranks, scales and layers: what the numbers alone don't say.
    """

    identity: str
    first_layer: int
    replaced: frozenset[str]  # layers that it replaces as a whole
    bytes: int
    handle: Handle | None = None  # its part inside the encoder
    score_F: Vector | None = None  # what it adds to the head's weights


@dataclass(frozen=True, slots=True)
class LoraStack:
    """What one row's LoRAs are, in the order of domain and person, each with a strength in (0, 1].

    `key` is the same only for what gives the same scores. Every text that is cached under it holds it, so it is one
    object for all of them.
    """

    applied: tuple[tuple[Lora, float], ...]
    key: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        key = "+".join(f"{lora.identity}*{strength!r}" for lora, strength in self.applied)
        object.__setattr__(self, "key", sys.intern(key))

    @property
    def inner(self) -> list[Applied]:
        return [Applied(lora.handle, strength) for lora, strength in self.applied if lora.handle is not None]

    @property
    def gathered_bytes(self) -> int:
        """What a batch copies for each row under this stack."""
        return sum(lora.handle.gathered_bytes for lora, _ in self.applied if lora.handle is not None)


def clash(a: Lora, b: Lora) -> bool:
    """Whether the two can't be one stack: both replace a layer as a whole."""
    return bool(a.replaced & b.replaced)


class LoraEngine:
    """For one global model. Nothing is hooked into it, and no memory taken, before the first LoRA. Thread-safe."""

    def __init__(self, model: PreferenceModel) -> None:
        self.model = model
        self._lock = threading.Lock()
        self._shares_layers = True
        # Without a lock: a LoRA may die in a garbage collection, in the middle of anything.
        self._unused: deque[Handle] = deque()

    @cached_property
    def shapes(self) -> dict[str, LinearShape]:
        """Of every layer that an adapter may name."""
        return linear_shapes(self._reward)

    @property
    def head_reads_encoder(self) -> bool:
        """Whether the score depends on the encoder's output other than through the text kernel. If not, what an inner
        layer changes shows only where an adapter on `score`, or a head adapter, reads it."""
        return bool(self.model.head.reward_F[: self.model.backbone.hidden_size].any())

    @cached_property
    def _reward(self) -> RewardModel:
        return RewardModel.of(self.model)

    @cached_property
    def _runtime(self) -> BatchedRuntime:
        return BatchedRuntime(self._reward)

    @cached_property
    def _layers(self) -> SharedLayers:
        return SharedLayers(self._reward)

    @cached_property
    def _bare_probes(self) -> list[float]:
        return self._scored(None)

    def _scored(self, stack: LoraStack | None) -> list[float]:
        """Of the probes."""
        scores: list[float] = self.project(PROBES, [stack] * len(PROBES))[:, 0].tolist()
        return scores

    def add(self, adapter: LoraAdapter, identity: str, *, shared: bool) -> Lora:
        """`shared`: of a domain, so of many rows of a batch. Raises CorruptArtifactError if it does not fit."""
        self.free_unused()
        inner = _without_score(adapter)
        with self._lock:
            self._runtime, self._layers  # noqa: B018  made once, by one thread
        handle = None if inner is None else self._runtime.residents.add(inner, shared=shared)
        lora = Lora(
            identity,
            0 if inner is None else self._layers.first_of([*inner.pairs, *inner.saved]),
            frozenset(adapter.saved),
            sum(_sizes(adapter)),
            handle,
            self._score_row(adapter),
        )
        if handle is not None:
            weakref.finalize(lora, self._unused.append, handle).atexit = False
        return lora

    def load(self, template: ReleaseTemplate, tensors: Weights, weights_sha256: str) -> Lora:
        """From verified tensors. Raises CorruptArtifactError if it does not fit the model, or does not do to the probes
        what it did where it was registered; with the code `probe_differs` if this machine's bare model already gives
        other scores there, so that nothing can be said of the adapter."""
        layout = template.lora
        if layout is None:
            raise CorruptArtifactError("the adapter's manifest does not say which layers it changes.")
        adapter = adapter_of(layout, tensors, self.shapes)
        lora = self.add(adapter, identity_of(layout, weights_sha256), shared=template.scope == "domain")
        self.check(lora, layout)
        return lora

    def check(self, lora: Lora, layout: LoraLayout) -> None:
        """Raises as `load` for one that does not do what its proofs say."""
        bare, adapted = self.probe(lora)
        try:
            check_proof(layout.bare, self.model.digest, None, bare)
        except CorruptArtifactError as error:
            raise CorruptArtifactError(
                f"this machine does not compute the model as the one did that registered the adapter: {error.message}",
                mend="Compare the versions of torch and transformers (idiolect doctor).",
                code="probe_differs",
            ) from error
        check_proof(layout.proof, self.model.digest, bare, adapted)

    def probe(self, lora: Lora) -> tuple[list[float], list[float]]:
        """Scores of PROBES without and with it."""
        return self._bare_probes, self._scored(LoraStack(((lora, 1.0),)))

    def prove(self, lora: Lora) -> tuple[LoadProof, LoadProof]:
        """(bare, proof) for its manifest. Raises CorruptArtifactError for one that changes nothing."""
        bare, adapted = self.probe(lora)
        return prove(self.model.digest, None, bare), prove(self.model.digest, bare, adapted)

    def _score_row(self, adapter: LoraAdapter) -> Vector | None:
        row_F = np.zeros(len(self.model.head.reward_F))
        if SCORE in adapter.saved:
            row_F += adapter.saved[SCORE].weight_O_I.double().numpy()[0] - self.model.head.reward_F
        if SCORE in adapter.pairs:
            pair = adapter.pairs[SCORE]
            row_F += adapter.spec.scale(SCORE) * (pair.B_O_R.double() @ pair.A_R_I.double()).numpy()[0]
        return row_F if SCORE in adapter.saved or SCORE in adapter.pairs else None

    def free_unused(self) -> None:
        """Of LoRAs that nobody holds any more: their rows in the slabs are zeroed."""
        while self._unused:
            try:
                handle = self._unused.popleft()
            except IndexError:  # another thread was faster
                return
            try:
                self._runtime.residents.remove(handle)
            except NotFoundError:
                continue

    def check_integrity(self) -> None:
        """Raises if the books of what is in memory don't balance, or it was damaged there."""
        if "_runtime" in self.__dict__:
            self._runtime.residents.check_integrity()

    @property
    def residents(self) -> ResidentStats | None:
        """Also LoRAs that left every tier, while somebody computes with them. None before the first."""
        return self._runtime.residents.stats() if "_runtime" in self.__dict__ else None

    @property
    def resident_bytes(self) -> int:
        return 0 if self.residents is None else self.residents.bytes

    def project(self, pairs: Pairs, stacks: Sequence[LoraStack | None]) -> Matrix:
        """[N, 1 + k + m], as PreferenceModel.project, each row under its own LoRAs: None is the bare model, to the bit.

        A row has the same bits in any company.
        """
        self.free_unused()
        out_N_P = np.empty((len(pairs), 1 + self.model.user_rank + self.model.domain_rank))
        ids_N = self.model.backbone.tokenize(pairs).ids
        lengths = [self.model.backbone.padding.length(len(ids)) for ids in ids_N]
        for length, rows in _batches(pairs, lengths, stacks, self.model.backbone.padding):
            texts = {pairs[row]: ids_N[row] for row in rows}
            number = {text: index for index, text in enumerate(texts)}
            text_of_row = [number[pairs[row]] for row in rows]
            batch = _Batch(list(texts), list(texts.values()), length, text_of_row, [stacks[row] for row in rows])
            out_N_P[rows] = self._projected(batch)
        return out_N_P

    def _projected(self, batch: _Batch) -> Matrix:
        pooled_E_H, encoded_of_row = self._pooled(batch)
        texts = len(batch.texts)
        beside_T_S = beside_features(pooled_E_H[:texts], batch.texts, self.model.head.kernel)
        features_R_F = np.concatenate([pooled_E_H[encoded_of_row], beside_T_S[batch.text_of_row]], axis=1)
        out_R_P = project_features(features_R_F, self.model.head)
        for row, stack in enumerate(batch.stacks):
            for lora, strength in () if stack is None else stack.applied:
                if lora.score_F is not None:
                    centred_F = features_R_F[row].astype(np.float64) - self.model.head.mean_F
                    out_R_P[row, 0] += strength * float((centred_F * lora.score_F).sum())
        return out_R_P

    @torch.inference_mode()
    def _pooled(self, batch: _Batch) -> tuple[NDArray[np.float32], list[int]]:
        """What the encoder gives: first the texts of the bare model, then what differs; and which of it each row
        reads."""
        texts = len(batch.texts)
        encoded: dict[tuple[int, tuple[Applied, ...]], int] = {(text, ()): text for text in range(texts)}
        inner_R = [() if stack is None else tuple(stack.inner) for stack in batch.stacks]
        encoded_of_row = [
            encoded.setdefault((text, inner), len(encoded))
            for text, inner in zip(batch.text_of_row, inner_R, strict=True)
        ]
        if len(encoded) == texts:
            return self.model.backbone.pooled(batch.ids, batch.length).cpu().numpy(), encoded_of_row
        first = min(lora.first_layer for stack in batch.stacks if stack for lora, _ in stack.applied if lora.handle)
        plan = self._runtime.plan([inner for _, inner in encoded])
        text_of = [text for text, _ in encoded]
        ordered = [text_of[row] for row in plan.order]
        pooled = self._pooled_rows(batch, plan, ordered, first if self._shares_layers else 0)
        pooled_E_H = np.empty(tuple(pooled.shape), np.float32)
        pooled_E_H[list(plan.order)] = pooled.cpu().numpy()
        return pooled_E_H, encoded_of_row

    def _pooled_rows(self, batch: _Batch, plan: Plan, text_of_row: list[int], first: int) -> torch.Tensor:
        """[R, h], in the plan's order. Layers below `first` see each text once."""
        rows = torch.tensor(text_of_row)
        with self._runtime.running(plan), self._layers.copying(first, rows, len(batch.texts)) as copies:
            given = batch.ids if copies else [batch.ids[text] for text in text_of_row]
            try:
                return self.model.backbone.pooled(given, batch.length, text_of_row if copies else None)
            except RuntimeError:
                if not copies:
                    raise
        # Its layers are given what is neither one for each text nor the same for all (ALiBi's slopes in Bloom, say).
        self._shares_layers = False
        return self._pooled_rows(batch, plan, text_of_row, 0)


@dataclass(frozen=True, slots=True)
class _Batch:
    """T texts of one padded length, and R rows of them."""

    texts: Pairs
    ids: Sequence[Sequence[int]]
    length: int
    text_of_row: list[int]
    stacks: Sequence[LoraStack | None]


def _batches(
    pairs: Pairs, lengths: Sequence[int], stacks: Sequence[LoraStack | None], padding: Padding
) -> list[tuple[int, list[int]]]:
    """(padded length, rows): as many as one batch takes, with a row more for each text, which the bare model reads."""
    found: list[tuple[int, list[int]]] = []
    size = gathered = 0
    before: tuple[str, str] | None = None
    for row in sorted(range(len(pairs)), key=lambda row: (lengths[row], pairs[row])):
        stack = stacks[row]
        own = 0 if stack is None else stack.gathered_bytes
        size += 1 if pairs[row] == before else 2
        gathered += own
        fits = size <= padding.rows(lengths[row]) and (gathered == own or gathered <= MOST_GATHERED_BYTES)
        if not found or found[-1][0] != lengths[row] or not fits:
            found.append((lengths[row], []))
            size, gathered = 2, own
        found[-1][1].append(row)
        before = pairs[row]
    return found


def identity_of(layout: LoraLayout, weights_sha256: str) -> str:
    said = {name: value for name, value in layout.to_json().items() if name not in ("bare", "proof")}
    return sha256_hex(canonical_json(said | {"weights": weights_sha256}))


def spec_of(layout: LoraLayout) -> LoraSpec:
    return LoraSpec(
        {target.name: target.rank for target in layout.targets},
        {target.name: target.alpha for target in layout.targets},
        layout.use_rslora,
        layout.saved,
    )


def _without_score(adapter: LoraAdapter) -> LoraAdapter | None:
    """Its part inside the encoder; None if it has none. The head's part is added in float64, as the head itself is."""
    spec = adapter.spec
    pairs = {name: pair for name, pair in adapter.pairs.items() if name != SCORE}
    saved = {name: layer for name, layer in adapter.saved.items() if name != SCORE}
    if not pairs and not saved:
        return None
    ranks = {name: spec.rank_pattern[name] for name in pairs}
    alphas = {name: spec.alpha_pattern[name] for name in pairs}
    return LoraAdapter(LoraSpec(ranks, alphas, spec.use_rslora, tuple(saved)), pairs, saved)


def _sizes(adapter: LoraAdapter) -> list[int]:
    ranks = adapter.spec.rank_pattern
    halves = [
        4 * padded_rank(ranks[name]) * (pair.A_R_I.shape[1] + len(pair.B_O_R)) for name, pair in adapter.pairs.items()
    ]
    return halves + [4 * (saved.weight_O_I.numel() + len(saved.weight_O_I)) for saved in adapter.saved.values()]


def adapter_of(layout: LoraLayout, tensors: Weights, shapes: Mapping[str, LinearShape]) -> LoraAdapter:
    """From a manifest and its verified tensors. Raises CorruptArtifactError if it does not fit `shapes`."""
    return adapter_from({name: torch.from_numpy(value) for name, value in tensors.items()}, spec_of(layout), shapes)
