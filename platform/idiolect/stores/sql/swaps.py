"""Every write that changes which version is live, told once it is committed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from idiolect.registry.manifest import ReleaseTemplate, Version
from idiolect.registry.pointers import Adapter, Pointer
from idiolect.registry.swaps import MAX_NAMED, OnSwap, Swap
from idiolect.rollouts.plan import Candidate, Plan, Rollout
from idiolect.rollouts.verdicts import Move
from idiolect.stores.people_ports import ClaimedKey
from idiolect.stores.ports import PublishOutcome
from idiolect.stores.sql.global_rollouts import GlobalRollouts
from idiolect.stores.sql.pointers import Pointers
from idiolect.stores.sql.registry import Registry
from idiolect.stores.sql.rollouts import Rollouts
from idiolect.stores.sql.withheld import Withholding


class Swaps(Registry, Pointers, Withholding, Rollouts, GlobalRollouts):
    """`on_swap` is told; nothing depends on it. Not of what a reset or withdrawn consent takes away: that is purged."""

    on_swap: OnSwap | None = None

    def publish(
        self,
        release: str,
        template: ReleaseTemplate,
        versions: Sequence[Version],
        now: datetime,
        *,
        reason: str,
        actor: str,
        staged: bool = False,
    ) -> PublishOutcome:
        done = super().publish(release, template, versions, now, reason=reason, actor=actor, staged=staged)
        if done.published and not staged:
            named = tuple(version.id for version in versions) if len(versions) <= MAX_NAMED else ()
            self._tell(Swap(template.tenant, release, named))
        return done

    def revoke_release(self, tenant: str, release: str, now: datetime, *, reason: str, actor: str) -> None:
        super().revoke_release(tenant, release, now, reason=reason, actor=actor)
        self._tell(Swap(tenant, release))

    def promote(
        self, tenant: str, version_id: str, now: datetime, *, reason: str, actor: str, if_match: str | None = None
    ) -> Pointer:
        live = super().promote(tenant, version_id, now, reason=reason, actor=actor, if_match=if_match)
        self._tell(Swap(tenant, versions=(version_id,)))
        return live

    def promote_release(self, tenant: str, release: str, now: datetime, *, reason: str, actor: str) -> int:
        moved = super().promote_release(tenant, release, now, reason=reason, actor=actor)
        if moved:
            self._tell(Swap(tenant, release))
        return moved

    def rollback(
        self,
        tenant: str,
        adapter: Adapter,
        now: datetime,
        *,
        reason: str,
        actor: str,
        if_match: str | None = None,
        once: ClaimedKey | None = None,
    ) -> Pointer:
        live = super().rollback(tenant, adapter, now, reason=reason, actor=actor, if_match=if_match, once=once)
        if live.version is not None:
            self._tell(Swap(tenant, versions=(live.version,)))
        return live

    def follow_model(self, tenant: str, release: str, now: datetime, *, reason: str, actor: str) -> int:
        moved = super().follow_model(tenant, release, now, reason=reason, actor=actor)
        if moved:
            self._tell(Swap(tenant, release))
        return moved

    def quarantine(self, tenant: str, version_id: str, reason: str, now: datetime, *, actor: str) -> bool:
        gone = super().quarantine(tenant, version_id, reason, now, actor=actor)
        if gone:
            self._tell(Swap(tenant, versions=(version_id,)))
        return gone

    def create_rollout(
        self,
        tenant: str,
        candidate: Candidate,
        plan: Plan,
        now: datetime,
        *,
        reason: str,
        actor: str,
        start: bool,
        rollout_id: str | None = None,
    ) -> Rollout:
        made = super().create_rollout(
            tenant, candidate, plan, now, reason=reason, actor=actor, start=start, rollout_id=rollout_id
        )
        if start:
            self._tell_of(made)
        return made

    def steer_rollout(
        self,
        tenant: str,
        rollout_id: str,
        action: str,
        now: datetime,
        *,
        reason: str,
        actor: str,
        if_revision: int | None = None,
    ) -> Rollout:
        steered = super().steer_rollout(
            tenant, rollout_id, action, now, reason=reason, actor=actor, if_revision=if_revision
        )
        self._tell_of(steered)
        return steered

    def move_rollout(self, rollout: Rollout, move: Move, now: datetime, *, actor: str) -> Rollout:
        moved = super().move_rollout(rollout, move, now, actor=actor)
        if (moved.state, moved.step) != (rollout.state, rollout.step):
            self._tell_of(moved)
        return moved

    def _tell_of(self, rollout: Rollout) -> None:
        """Of a setting nothing has to be loaded, and whole models have followers of their own."""
        candidate = rollout.candidate
        if candidate.kind == "version":
            self._tell(Swap(rollout.tenant, versions=(candidate.id,)))
        elif candidate.kind == "release":
            self._tell(Swap(rollout.tenant, candidate.id))

    def _tell(self, swap: Swap) -> None:
        if self.on_swap is not None:
            self.on_swap(swap)
