"""A PEFT LoRA that was trained elsewhere becomes a version like any other: signed, with pointers, and revocable.

Everything is checked before anything is written: the two files as data, the layers and shapes against the live global
model, and what the adapter does to a few fixed texts, which goes into the manifest as its load proof. Nothing is
claimed about its privacy, for nobody here knows how it was trained.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as package_version
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from idiolect.clock import Clock
from idiolect.errors import ConflictError, ConsentError, CorruptArtifactError, InvalidInputError
from idiolect.ids import check_name, new_id, sha256_hex
from idiolect.privacy.budget import PrivacyStatement
from idiolect.registry.lora_layout import LoraLayout, LoraTarget
from idiolect.registry.manifest import (
    LORA,
    NO_BASIS,
    AdapterScope,
    ReleaseTemplate,
    TensorSpec,
    Version,
)
from idiolect.registry.pointers import Adapter
from idiolect.registry.signed import signed_versions
from idiolect.registry.signing import Signer
from idiolect.registry.strict import check_template
from idiolect.registry.weights import dump_weights
from idiolect.signals.context import Context
from idiolect.stores.ports import Store

if TYPE_CHECKING:  # they import torch
    from idiolect_adapters.lora.spec import LoraAdapter
    from idiolect_adapters.runtime.loras import LoraEngine

REFUSED = "adapter_refused"
MAX_NORM = 1e4  # of one tensor
BASE_PREFIXES = ("encoder.",)  # layers as they are called in the encoder itself, or in a model around it

Tensors = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Origin:
    """How an adapter came to be. `run`: the ledger's; none of what was trained elsewhere."""

    privacy: PrivacyStatement | None
    data_window: str
    run: str | None = None
    context: Context | None = None


ELSEWHERE = Origin(None, "not known: trained elsewhere and registered here")


@dataclass(frozen=True, slots=True)
class Registration:
    """`global_digest`: the model that the adapter was trained on. `release`: an id that makes a retry harmless."""

    tenant: str
    adapter: Adapter
    global_digest: str
    config: bytes  # adapter_config.json
    weights: bytes  # adapter_model.safetensors
    reason: str
    actor: str
    staged: bool = False
    release: str | None = None


class Registrar:
    """For one global model."""

    def __init__(self, store: Store, engine: LoraEngine, signer: Signer, clock: Clock) -> None:
        self._store = store
        self._engine = engine
        self._signer = signer
        self._clock = clock

    def register(self, asked: Registration) -> Version:
        """The version, published and live (`staged`: for nobody yet).

        Raises ConflictError (code `wrong_base`) for another global model than the live one, ConsentError for a person
        who has not opted in, InvalidInputError with what is wrong with the adapter (`adapter_refused`, or
        `changes_nothing`), TooLargeError.
        """
        known = None if asked.release is None else self._store.versions(asked.tenant, release=asked.release, limit=1)
        if known:
            return known[0].version
        generation = self._check_owner(asked.tenant, asked.adapter)
        self._check_base(asked.global_digest)
        with _refusals():
            adapter = self._read(asked)
            template = self.template(asked.tenant, asked.adapter.scope, adapter, ELSEWHERE)
            version = self.version(template, adapter, asked.adapter, generation, asked.release or new_id())
        outcome = self._store.publish(
            version.release,
            template,
            [version],
            self._clock.now(),
            reason=asked.reason,
            actor=asked.actor,
            staged=asked.staged,
        )
        if not outcome.published:
            raise ConflictError("the person was reset or opted out meanwhile.", mend="Nothing was registered.")
        return version

    def template(self, tenant: str, scope: AdapterScope, adapter: LoraAdapter, origin: Origin) -> ReleaseTemplate:
        """The manifest that a release of this one adapter has, with its load proof. Raises CorruptArtifactError for
        one that does not fit the model, changes nothing, or can't be described."""
        layout = self._layout(adapter, scope)
        rank = max((target.rank for target in layout.targets), default=1)
        template = ReleaseTemplate(
            tenant=tenant,
            scope=scope,
            global_digest=self._engine.model.digest,
            basis_digest=NO_BASIS,
            kind=LORA,
            rank=rank,
            alpha=float(rank),
            targets=layout.layers,
            tensors=tuple(
                TensorSpec(name, value.shape, max_norm=MAX_NORM) for name, value in sorted(_tensors(adapter).items())
            ),
            privacy=origin.privacy,
            data_window=origin.data_window,
            producer=f"idiolect {package_version('idiolect')}",
            run=origin.run or new_id(),
            created_at=self._clock.now(),
            lora=layout,
            context=origin.context,
        )
        check_template(template)
        return template

    def version(
        self, template: ReleaseTemplate, adapter: LoraAdapter, owner: Adapter, generation: int, release: str
    ) -> Version:
        """Signed, and verified as it will be at load. Raises CorruptArtifactError."""
        weights = dump_weights(_tensors(adapter))
        version = Version(
            id=new_id(),
            release=release,
            subject=owner.subject,
            domain=owner.domain,
            generation=generation,
            parent=self._store.pointers(template.tenant, owner)[0].version,
            weights=weights,
            weights_sha256=sha256_hex(weights),
        )
        (signed,) = signed_versions(template, [version], self._signer)
        return signed

    def _check_owner(self, tenant: str, owner: Adapter) -> int:
        """The generation that the version belongs to."""
        if owner.scope == "domain":
            check_name("domain", owner.name)
            return 0
        state = self._store.subject(tenant, owner.name)
        if not state.opted_in:
            raise ConsentError(
                "the person has not opted in, so nothing may be kept for them.", mend="Ask for their consent first."
            )
        return state.generation

    def _check_base(self, global_digest: str) -> None:
        live = self._store.live_global()
        if live != self._engine.model.digest:
            raise ConflictError(
                "a new global model is taking over.", mend="Try again after a moment.", code="wrong_base"
            )
        if global_digest != live:
            raise ConflictError(
                f"the adapter was trained on {global_digest[:64]!r}, the live global model is {live}.",
                mend="Train it on the live model.",
                code="wrong_base",
            )

    def _read(self, asked: Registration) -> LoraAdapter:
        from idiolect_adapters.lora.peft_format import read_peft

        return read_peft(asked.config, asked.weights, self._engine.shapes, base_prefixes=BASE_PREFIXES)

    def _layout(self, adapter: LoraAdapter, scope: AdapterScope) -> LoraLayout:
        lora = self._engine.add(adapter, f"being registered {new_id()}", shared=scope == "domain")
        try:
            bare, proof = self._engine.prove(lora)
        except CorruptArtifactError as error:
            if error.code == "changes_nothing" and not self._engine.head_reads_encoder and lora.score_F is None:
                error.mend = "The head of this model does not read the encoder: target `score` beside the inner layers."
            raise
        spec = adapter.spec
        targets = tuple(LoraTarget(name, spec.rank_pattern[name], spec.alpha_pattern[name]) for name in spec.targets)
        return LoraLayout(targets, spec.use_rslora, spec.modules_to_save, bare, proof)


@contextmanager
def _refusals() -> Iterator[None]:
    """What is damaged on arrival is the sender's mistake, and not damage of ours."""
    try:
        yield
    except CorruptArtifactError as error:
        traceback.clear_frames(error.__traceback__)  # they hold the adapter that was tried
        code = error.code if error.code != CorruptArtifactError.code else REFUSED
        raise InvalidInputError(error.message, mend=error.mend or "Correct the adapter.", code=code) from error


def _tensors(adapter: LoraAdapter) -> Tensors:
    from idiolect_adapters.lora.weights import tensors_of

    return {name: tensor.numpy() for name, tensor in tensors_of(adapter).items()}
