"""Rollouts as the API and the command line show them. The salt is in none of them: the store never tells it."""

from __future__ import annotations

from typing import Any

from idiolect.rollouts.plan import Rollout
from idiolect.rollouts.verdicts import evaluate
from idiolect.stores.ports import Store


def state_of(rollout: Rollout) -> dict[str, Any]:
    candidate = rollout.candidate
    return {
        "id": rollout.id,
        "candidate": {"kind": candidate.kind, "id": candidate.id or None, "strength": candidate.strength},
        "covers": [f"{slot}:{domain}" if domain else slot for slot, domain in rollout.owners],
        "plan": rollout.plan.to_json(),
        "state": rollout.state,
        "step": rollout.step + 1,
        "share": rollout.share,
        "verdict": rollout.verdict,
        "reason": rollout.reason,
        "actor": rollout.actor,
        "revision": rollout.revision,
        "created_at": rollout.created_at.isoformat(),
        "moved_at": rollout.moved_at.isoformat(),
    }


def detail_of(store: Store, tenant: str, rollout_id: str) -> dict[str, Any]:
    """Raises NotFoundError."""
    reading = store.rollout_reading(tenant, rollout_id)
    rollout, evidence = reading.rollout, reading.evidence
    history = store.rollout_history(tenant, rollout_id)
    return state_of(rollout) | {
        "enrolled": {"control": evidence.people("control"), "candidate": evidence.people("candidate")},
        "evaluation": evaluate(rollout.plan, rollout.tested_step, evidence).to_json(),
        "history": [
            {
                "state": entry.state,
                "step": entry.step + 1,
                "verdict": entry.verdict,
                "at": entry.at.isoformat(),
                "reason": entry.reason,
                "actor": entry.actor,
            }
            for entry in history
        ],
    }
