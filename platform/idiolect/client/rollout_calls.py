"""Rollouts, as calls of the API.

`create_rollout` has a key, and `abort_rollout` may be done twice. The others are refused the second time, so they are
not sent again after their answer was lost: read the rollout to know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from idiolect.client import rollout_results as results
from idiolect.client.call import Call, given, new_id, segment
from idiolect.errors import InvalidInputError


def rollouts(*, limit: int | None = None) -> Call[results.Rollouts]:
    """Rollouts and their verdicts, newest first."""
    return Call("GET", "/v1/rollouts", results.Rollouts, query=given({"limit": limit}))


def rollout(rollout_id: str) -> Call[results.RolloutDetail]:
    """One rollout: what its guardrails say, and its history."""
    return Call("GET", _path(rollout_id), results.RolloutDetail)


def create_rollout(
    reason: str,
    *,
    release: str | None = None,
    version: str | None = None,
    global_model: str | None = None,
    strength: float | None = None,
    steps: Sequence[float] | None = None,
    guardrails: Mapping[str, float] | None = None,
    min_people: int | None = None,
    per_person: int | None = None,
    slow_ms: float | None = None,
    alpha: float | None = None,
    start: bool = True,
    idempotency_key: str | None = None,
) -> Call[results.Rollout]:
    """Try a candidate on a share of people first: a `release`, one `version` of a domain, a staged `global_model` by
    its digest or as `latest`, or a `strength` for everybody. What is not given is as the server has it.

    `steps`: shares of people, rising. `guardrails`: for each metric the harm that is tolerated. Without `start` it is
    a draft, which serves nobody. Under one `idempotency_key` (one is made if you give none) it is made once.
    """
    body = {
        "candidate": _candidate(release, version, global_model, strength),
        "reason": reason,
        "steps": None if steps is None else list(steps),
        "guardrails": None if guardrails is None else dict(guardrails),
        "min_people": min_people,
        "per_person": per_person,
        "slow_ms": slow_ms,
        "alpha": alpha,
        "start": start,
    }
    headers = {"Idempotency-Key": idempotency_key or new_id()}
    return Call("POST", "/v1/rollouts", results.Rollout, given(body), headers=headers)


def start_rollout(rollout_id: str, reason: str, *, if_revision: int | None = None) -> Call[results.Rollout]:
    """Begin a draft with its first step. With `if_revision`: ApiPreconditionError if it has moved since."""
    return _steer("start", rollout_id, reason, if_revision)


def hold_rollout(rollout_id: str, reason: str, *, if_revision: int | None = None) -> Call[results.Rollout]:
    """Stop it from advancing. With `if_revision`: ApiPreconditionError if it has moved since."""
    return _steer("hold", rollout_id, reason, if_revision)


def resume_rollout(rollout_id: str, reason: str, *, if_revision: int | None = None) -> Call[results.Rollout]:
    """Let it advance again. With `if_revision`: ApiPreconditionError if it has moved since."""
    return _steer("resume", rollout_id, reason, if_revision)


def abort_rollout(rollout_id: str, reason: str, *, if_revision: int | None = None) -> Call[results.Rollout]:
    """Put everybody back at once. Harmless to repeat. With `if_revision`: ApiPreconditionError if it has moved since,
    and not sent again when the answer is lost."""
    return _steer("abort", rollout_id, reason, if_revision, safe=if_revision is None)


def _steer(
    action: str, rollout_id: str, reason: str, if_revision: int | None, *, safe: bool = False
) -> Call[results.Rollout]:
    headers = {} if if_revision is None else {"If-Match": f'"{if_revision}"'}
    path = f"{_path(rollout_id)}/{action}"
    return Call("POST", path, results.Rollout, {"reason": reason}, headers=headers, safe=safe)


def _path(rollout_id: str) -> str:
    return f"/v1/rollouts/{segment('rollout', rollout_id)}"


def _candidate(
    release: str | None, version: str | None, global_model: str | None, strength: float | None
) -> dict[str, Any]:
    named: dict[str, dict[str, Any]] = {
        "release": {"id": release},
        "version": {"id": version},
        "global": {"id": global_model},
        "setting": {"strength": strength},
    }
    found = [{"kind": kind, **given(what)} for kind, what in named.items() if given(what)]
    if len(found) != 1:
        raise InvalidInputError(
            f"{len(found)} candidates were named.", mend="Give one of release, version, global_model and strength."
        )
    return found[0]
