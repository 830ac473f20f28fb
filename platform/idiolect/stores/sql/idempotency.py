"""Requests that may be sent again: what was answered to a key, for as long as it is kept."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Insert, and_, bindparam, delete, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from idiolect.errors import InvalidInputError
from idiolect.stores.people_ports import ClaimedKey, HeldKey, KeptAnswer
from idiolect.stores.sql import schema
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.times import micros, moment

MAX_ANSWER_BYTES = 64 << 10  # a longer answer is not kept, and is made again
MAX_KEYS = 100_000  # of one tenant; beyond that the oldest are forgotten early
DONE = 204  # kept in place of an answer that is made anew each time
SWEPT_AT_ONCE = 100  # expired keys that each new one takes along, so that they go faster than they come

_K = schema.idempotency_keys.c


class Idempotency(Part):
    def claim_key(
        self, tenant: str, owner: str, key: str, fingerprint: bytes, now: datetime, expires: datetime
    ) -> HeldKey:
        """Not lasting: a power cut may forget the latest keys, and what they guard is idempotent by its own ids."""
        at, until = micros(now), micros(expires)
        return self._database.small_write(
            tenant, lambda connection: _claim(connection, tenant, owner, key, fingerprint, at, until)
        )

    def keep_answer(self, tenant: str, owner: str, key: str, fingerprint: bytes, answer: KeptAnswer) -> None:
        if len(answer.body) > MAX_ANSWER_BYTES:
            return
        kept: dict[str, Any] = {"of_tenant": tenant, "of_owner": owner, "of_key": key, "of_fingerprint": fingerprint}
        kept |= {"new_status": answer.status, "new_answer": answer.body}
        self._database.small_write(tenant, lambda connection: connection.execute(_KEEP, kept))


def _claim(
    connection: Connection, tenant: str, owner: str, key: str, fingerprint: bytes, at: int, until: int
) -> HeldKey:
    _sweep(connection, tenant, at, all_of_them=fingerprint[0] == 0)
    mine = {"of_tenant": tenant, "of_owner": owner, "of_key": key}
    connection.execute(_FORGET, {**mine, "at": at})
    row = {"tenant": tenant, "owner": owner, "key": key, "fingerprint": fingerprint}
    connection.execute(_CLAIM[connection.dialect.name], {**row, "claimed_at": at, "expires_at": until})
    stored = connection.execute(_CLAIMED, mine).one()
    if stored.fingerprint != fingerprint:
        raise InvalidInputError(
            "this Idempotency-Key was used for another request.", mend="Send a new key.", code="idempotency_key_reused"
        )
    answer = None if stored.status is None else KeptAnswer(stored.status, stored.answer)
    return HeldKey(moment(stored.claimed_at), answer)


def first_time(connection: Connection, tenant: str, claimed: ClaimedKey) -> bool:
    """Whether what this key stands for is to be done, in this same transaction, which keeps that it is. Who does the
    same at the same time waits here. A key that is forgotten meanwhile holds nobody up."""
    mine = {"of_tenant": tenant, "of_owner": claimed.owner, "of_key": claimed.key}
    done = {"of_fingerprint": claimed.fingerprint, "new_status": DONE, "new_answer": b""}
    if connection.execute(_KEEP, mine | done).rowcount:
        return True
    stored = connection.execute(_CLAIMED, mine).one_or_none()
    return stored is None or stored.fingerprint != claimed.fingerprint


def _sweep(connection: Connection, tenant: str, at: int, *, all_of_them: bool) -> None:
    """What has expired; with `all_of_them` (one claim in 256) also what is over the bound, which has to be counted."""
    connection.execute(_SWEEP, {"tenant": tenant, "at": at})
    if not all_of_them:
        return
    oldest_kept = connection.scalar(_OLDEST_KEPT, {"tenant": tenant, "most": MAX_KEYS})
    if oldest_kept is not None:
        connection.execute(_FORGET_UNTIL, {"tenant": tenant, "at": oldest_kept})


def _claim_of(made: sqlite.Insert | postgresql.Insert) -> Insert:
    names = ("tenant", "owner", "key", "fingerprint", "claimed_at", "expires_at")
    return made.values({name: bindparam(name) for name in names}).on_conflict_do_nothing()


_TENANT = _K.tenant == bindparam("tenant")
_MINE = and_(_K.tenant == bindparam("of_tenant"), _K.owner == bindparam("of_owner"), _K.key == bindparam("of_key"))
_KEY = (_K.tenant, _K.owner, _K.key)
_CLAIM = {
    "sqlite": _claim_of(sqlite.insert(schema.idempotency_keys)),
    "postgresql": _claim_of(postgresql.insert(schema.idempotency_keys)),
}
_CLAIMED = select(_K.fingerprint, _K.status, _K.answer, _K.claimed_at).where(_MINE)
_KEEP = (
    update(schema.idempotency_keys)
    .where(_MINE, _K.fingerprint == bindparam("of_fingerprint"), _K.status.is_(None))
    .values(status=bindparam("new_status"), answer=bindparam("new_answer"))
)
_FORGET = delete(schema.idempotency_keys).where(_MINE, _K.expires_at <= bindparam("at"))
_EXPIRED = select(*_KEY).where(_TENANT, _K.expires_at <= bindparam("at")).order_by(_K.expires_at).limit(SWEPT_AT_ONCE)
_SWEEP = delete(schema.idempotency_keys).where(tuple_(*_KEY).in_(_EXPIRED))
_OLDEST_KEPT = select(_K.expires_at).where(_TENANT).order_by(_K.expires_at.desc()).offset(bindparam("most")).limit(1)
_FORGET_UNTIL = delete(schema.idempotency_keys).where(_TENANT, _K.expires_at <= bindparam("at"))
