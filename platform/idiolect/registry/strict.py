"""What a release may say of itself, checked field by field before anything is stored, and again when it is read.

A signature shows who wrote a manifest, and not that it makes sense: a rank of `true`, a target that is a regular
expression, or a name that leads out of a folder would be signed as willingly as any other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, get_args

from idiolect.errors import CorruptArtifactError
from idiolect.privacy.budget import PrivacyStatement
from idiolect.privacy.events import Unit
from idiolect.registry.manifest import LORA, Carried, ReleaseTemplate, TensorSpec

MAX_RANK, MAX_ALPHA, MAX_NORM = 4096, 1e6, 1e6
MAX_TENSORS = 4096
MAX_VALUES = 1 << 28  # of one tensor: a gigabyte of float32
MAX_DIMENSIONS = 3

# Plain ASCII. No slash, no backslash, nothing that a shell, a URL or a pattern gives a meaning to.
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]|\.(?!\.)){0,254}")
_LINE_CHARS = 500


def template_from_json(data: Mapping[str, Any]) -> ReleaseTemplate:
    """Raises CorruptArtifactError for a field that is missing, unknown or not usable."""
    try:
        template = ReleaseTemplate.from_json(data)
        same = template.to_json() == data
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CorruptArtifactError(f"the manifest is malformed: {type(error).__name__} {str(error)[:80]}.") from error
    check_template(template)
    if not same:
        raise CorruptArtifactError("the manifest holds fields that are not known.", mend="Make it with this version.")
    return template


def check_template(template: ReleaseTemplate) -> None:
    """Raises CorruptArtifactError naming the field."""
    for field in ("tenant", "global_digest", "basis_digest", "kind", "run"):
        _name(field, getattr(template, field))
    for field in ("data_window", "producer"):
        _line(field, getattr(template, field))
    if template.scope not in ("user", "domain", "global"):
        raise _unusable("scope", template.scope)
    if template.imported is not None:
        _name("imported", template.imported.tenant)
        _name("imported", template.imported.public_key)
    if template.carried is not None:
        _carried(template.carried)
    if template.privacy is not None:
        _privacy(template.privacy)
    if template.context is not None and template.scope != "domain":  # a person's languages are theirs
        raise _unusable("context", f"of scope {template.scope}")
    _whole("rank", template.rank, MAX_RANK)
    _number("alpha", template.alpha, MAX_ALPHA)
    for target in _listed("targets", template.targets):
        _name("targets", target)
    for spec in _listed("tensors", template.tensors):
        _tensor(spec)
    names = [spec.name for spec in template.tensors]
    if len(set(names)) != len(names):
        raise _unusable("tensors", "a name that appears twice")
    _lora(template)


def _carried(carried: Carried) -> None:
    _name("carried", carried.release)
    _name("carried", carried.global_digest)
    if len(carried.noise) > MAX_RANK or not all(0.0 <= value < math.inf for value in carried.noise):
        raise _unusable("carried", f"noise along {len(carried.noise)} directions")


def _privacy(said: PrivacyStatement) -> None:
    """Whether it is true nobody can tell from it. But cards, lists and ledgers are written from it, in numbers."""
    if said.unit not in get_args(Unit):
        raise _unusable("privacy", said.unit)
    for words in (said.adjacency, said.mechanism, said.accountant):
        _line("privacy", words)
    amounts = (said.epsilon, said.delta, said.rho, said.noise_multiplier, said.clip_norm, said.steps)
    perhaps = (said.local_epsilon, said.budget_epsilon, said.budget_days, said.sample_rate, said.unsampled_steps)
    for amount in (*amounts, *(amount for amount in perhaps if amount is not None)):
        if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 <= amount < math.inf:
            raise _unusable("privacy", amount)
    if not isinstance(said.weak, bool):
        raise _unusable("privacy", said.weak)


def _lora(template: ReleaseTemplate) -> None:
    """Only what is said to be a LoRA of any layers says of which, and only such a one may come without a statement of
    privacy: whatever this installation trains has one."""
    layout = template.lora
    if (layout is not None) != (template.kind == LORA):
        raise _unusable("lora", "missing" if layout is None else f"of the kind {template.kind}")
    if layout is None:
        if template.privacy is None:
            raise _unusable("privacy", None)
        return
    layout.check()
    for proof in (layout.bare, layout.proof):
        _name("lora", proof.global_digest)
    if template.targets != layout.layers:
        raise _unusable("targets", template.targets)


def _tensor(spec: TensorSpec) -> None:
    _name("tensors", spec.name)
    if spec.dtype != "F32":
        raise _unusable("dtype", spec.dtype)
    _number("max_norm", spec.max_norm, MAX_NORM)
    if not isinstance(spec.shape, tuple) or not 1 <= len(spec.shape) <= MAX_DIMENSIONS:
        raise _unusable("shape", spec.shape)
    for size in spec.shape:
        _whole("shape", size, MAX_VALUES)
    if math.prod(spec.shape) > MAX_VALUES:
        raise _unusable("shape", spec.shape)


def _listed(field: str, values: Any) -> tuple[Any, ...]:
    if not isinstance(values, tuple) or not 1 <= len(values) <= MAX_TENSORS:
        raise _unusable(field, f"{len(values) if isinstance(values, tuple) else values!r} entries")
    return values


def _name(field: str, value: Any) -> None:
    if not isinstance(value, str) or _NAME.fullmatch(value) is None:
        raise _unusable(field, value)


def _line(field: str, value: Any) -> None:
    if not isinstance(value, str) or len(value) > _LINE_CHARS or not value.isprintable():
        raise _unusable(field, value)


def _whole(field: str, value: Any, most: int) -> None:
    if type(value) is not int or not 1 <= value <= most:  # a bool is an int to Python
        raise _unusable(field, value)


def _number(field: str, value: Any, most: float) -> None:
    if type(value) not in (int, float) or not 0.0 < value <= most:
        raise _unusable(field, value)


def _unusable(field: str, value: object) -> CorruptArtifactError:
    return CorruptArtifactError(
        f"the manifest's {field} is not usable: {str(value)[:80]!r}.", mend="Make the adapter again."
    )
