"""The signed description of one immutable adapter version.

All versions of one training run share most of their manifest, so it is stored once per release (`ReleaseTemplate`) and
a version adds only what is its own. A million versions are a million short rows. `manifest_bytes` joins the two
into the canonical JSON that is signed and verified.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from json.encoder import encode_basestring_ascii
from typing import Any, Literal

from idiolect.canonical import canonical_json
from idiolect.errors import CorruptArtifactError
from idiolect.privacy.budget import PrivacyStatement
from idiolect.registry.lora_layout import LoraLayout
from idiolect.signals.context import Context

AdapterScope = Literal["domain", "user"]
ReleaseScope = Literal["domain", "user", "global"]

# Stands where a version has its domain, of what a private training of the global model released. Domains are in
# small letters, so no request names it, and it becomes live for nobody.
GLOBAL_OWNER = "GLOBAL"

MANIFEST_FORMAT = "idiolect-manifest/1"

HEAD_LORA = "head_lora"  # W_head + (alpha / rank) * B A, with A a basis of the global model
LORA = "lora"  # any linear layers; see lora_layout
GLOBAL_HEAD = "global_head"  # reward and basis in public directions, as a private training released them
NO_BASIS = "none"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    name: str
    shape: tuple[int, ...]
    dtype: Literal["F32"] = "F32"
    max_norm: float = 1e3  # an L2 norm above this is refused at publish and at load


@dataclass(frozen=True, slots=True)
class Carried:
    """These weights were not trained on their global model: they were written anew in its basis, from those of another
    release. Each version's parent is what it was made from; run and privacy are those of that training.
    """

    release: str  # where they come from
    global_digest: str  # the model that they were trained on
    noise: tuple[float, ...]  # standard deviation of the privacy noise along each direction of the new basis

    def to_json(self) -> dict[str, Any]:
        return {"release": self.release, "global": self.global_digest, "noise": list(self.noise)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Carried:
        """Raises CorruptArtifactError for a field too many or too few."""
        if set(data) != {"release", "global", "noise"}:
            raise CorruptArtifactError(f"where a release was carried from is said with the fields {sorted(data)}.")
        return Carried(str(data["release"]), str(data["global"]), tuple(float(value) for value in data["noise"]))


@dataclass(frozen=True, slots=True)
class Imported:
    """Another tenant or installation made this release and claims all that it says; whoever imported it signed anew.

    Release and version ids are those that it has there.
    """

    tenant: str
    public_key: str  # hex: its signature covered the file

    def to_json(self) -> dict[str, Any]:
        return {"tenant": self.tenant, "public_key": self.public_key}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Imported:
        """Raises CorruptArtifactError for a field too many or too few."""
        if set(data) != {"tenant", "public_key"}:
            raise CorruptArtifactError(f"where a release was imported from is said with the fields {sorted(data)}.")
        return Imported(str(data["tenant"]), str(data["public_key"]))


@dataclass(frozen=True, slots=True)
class ReleaseTemplate:
    """What all versions of one training run share.

    A field with a default is left out of the JSON where it has it: manifests signed before it existed keep their bytes.
    """

    tenant: str
    scope: ReleaseScope
    global_digest: str
    basis_digest: str  # the frozen A that the trained B is written in; NO_BASIS of a LoRA with an A of its own
    kind: str  # HEAD_LORA, LORA or GLOBAL_HEAD
    rank: int
    alpha: float
    targets: tuple[str, ...]
    tensors: tuple[TensorSpec, ...]
    privacy: PrivacyStatement | None  # None: trained elsewhere, and nothing is claimed
    data_window: str
    producer: str
    run: str  # the ledger's run; of what was trained elsewhere one that the ledger does not know
    created_at: datetime
    carried: Carried | None = None
    lora: LoraLayout | None = None  # of the kind LORA; rank and alpha above are then the largest rank, twice
    imported: Imported | None = None
    context: Context | None = None  # of a domain release: what its training was told to read; None: all

    def to_json(self) -> dict[str, Any]:
        optional = {} if self.carried is None else {"carried": self.carried.to_json()}
        optional |= {} if self.lora is None else {"lora": self.lora.to_json()}
        optional |= {} if self.imported is None else {"imported": self.imported.to_json()}
        optional |= {} if self.context is None else {"context": self.context.to_json()}
        return optional | {
            "format": MANIFEST_FORMAT,
            "tenant": self.tenant,
            "scope": self.scope,
            "global": self.global_digest,
            "basis": self.basis_digest,
            "kind": self.kind,
            "rank": self.rank,
            "alpha": self.alpha,
            "targets": list(self.targets),
            "tensors": [
                {"name": t.name, "shape": list(t.shape), "dtype": t.dtype, "max_norm": t.max_norm} for t in self.tensors
            ],
            "privacy": None if self.privacy is None else self.privacy.to_json(),
            "data_window": self.data_window,
            "producer": self.producer,
            "run": self.run,
            "created_at": self.created_at.isoformat(),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> ReleaseTemplate:
        return ReleaseTemplate(
            tenant=data["tenant"],
            scope=data["scope"],
            global_digest=data["global"],
            basis_digest=data["basis"],
            kind=data["kind"],
            rank=data["rank"],
            alpha=data["alpha"],
            targets=tuple(data["targets"]),
            tensors=tuple(TensorSpec(t["name"], tuple(t["shape"]), t["dtype"], t["max_norm"]) for t in data["tensors"]),
            privacy=None if data["privacy"] is None else PrivacyStatement.from_json(data["privacy"]),
            data_window=data["data_window"],
            producer=data["producer"],
            run=data["run"],
            created_at=datetime.fromisoformat(data["created_at"]),
            carried=Carried.from_json(data["carried"]) if "carried" in data else None,
            lora=LoraLayout.from_json(data["lora"]) if "lora" in data else None,
            imported=Imported.from_json(data["imported"]) if "imported" in data else None,
            context=Context.from_json(data["context"]) if "context" in data else None,
        )


@dataclass(frozen=True, slots=True)
class Version:
    """One immutable adapter. `subject` is a pseudonym, empty for domain scope; `domain` is empty for user scope,
    and GLOBAL_OWNER for global scope."""

    id: str
    release: str
    subject: str
    domain: str
    generation: int
    parent: str | None
    weights: bytes = field(repr=False)  # safetensors. Over 16 KiB they lie in a blob, and lists leave them empty
    weights_sha256: str
    evaluation: Mapping[str, float] = field(default_factory=dict)
    key_id: str = ""
    signature: bytes = field(default=b"", repr=False)


def manifest_bytes(template: ReleaseTemplate, version: Version) -> bytes:
    """The canonical JSON (RFC 8785) of the version's whole manifest, without its signature.

    Most of it is the same for a million versions, so what stands around a version's own members is rendered once: a
    test holds this against the plain rendering of the whole.
    """
    evaluation = version.evaluation
    return _forms_of(template)[1] % {
        b"version": _rendered(version.id),
        b"release": _rendered(version.release),
        b"subject": _rendered(version.subject),
        b"domain": _rendered(version.domain),
        b"generation": _rendered(version.generation),
        b"parent": b"null" if version.parent is None else _rendered(version.parent),
        b"weights_sha256": _rendered(version.weights_sha256),
        b"evaluation": _rendered(dict(evaluation)) if evaluation else b"{}",
    }


def template_bytes(template: ReleaseTemplate) -> bytes:
    """The canonical JSON of what all of its versions share."""
    return _forms_of(template)[0]


_OF_VERSION = ("version", "release", "subject", "domain", "generation", "parent", "weights_sha256", "evaluation")

# The last template and its forms. Found by identity: equal templates may still read differently (1 and true).
_forms_last: tuple[ReleaseTemplate | None, tuple[bytes, bytes]] = (None, (b"", b""))


def _forms_of(template: ReleaseTemplate) -> tuple[bytes, bytes]:
    """The template, and the manifest with a place, as `%` fills it, for each member of a version."""
    global _forms_last
    known, forms = _forms_last
    if known is not template:
        members = {name: _rendered(value) for name, value in template.to_json().items()}
        places = {name: b"%%(%b)b" % name.encode() for name in _OF_VERSION}
        around = {name: member.replace(b"%", b"%%") for name, member in members.items()}
        forms = (_joined(members), _joined(around | places))
        _forms_last = (template, forms)
    return forms


def _joined(members: Mapping[str, bytes]) -> bytes:
    return b"{" + b",".join(b'"%b":%b' % (name.encode(), members[name]) for name in sorted(members)) + b"}"


def _rendered(value: Any) -> bytes:
    """Plain texts and small numbers, which most values are, without asking the general rules."""
    if type(value) is str and value.isascii() and value.isprintable():
        return encode_basestring_ascii(value).encode()
    if type(value) is int and 0 <= value < 1 << 53:
        return b"%d" % value
    return canonical_json({"": value})[len(b'{"":') : -1]
