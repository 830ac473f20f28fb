"""Requests that may be sent again: what was answered to a key, for as long as it is kept."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, and_, delete, select, tuple_, update

from idiolect.errors import InvalidInputError
from idiolect.stores.people_ports import KeptAnswer
from idiolect.stores.sql import schema
from idiolect.stores.sql.engine import insert
from idiolect.stores.sql.part import Part
from idiolect.stores.sql.times import micros

MAX_ANSWER_BYTES = 64 << 10  # a longer answer is not kept, and is made again
MAX_KEYS = 100_000  # of one tenant; beyond that the oldest are forgotten early
_SWEEP = 100  # expired keys that each new one takes along, so that they go faster than they come

_K = schema.idempotency_keys.c


class Idempotency(Part):
    def claim_key(
        self, tenant: str, owner: str, key: str, fingerprint: bytes, now: datetime, expires: datetime
    ) -> KeptAnswer | None:
        """Not lasting: a power cut may forget the latest keys, and what they guard is idempotent by its own ids."""
        at, until = micros(now), micros(expires)
        return self._database.write(
            tenant,
            lambda connection: _claim(connection, tenant, owner, key, fingerprint, at, until),
            lasting=False,
        )

    def keep_answer(self, tenant: str, owner: str, key: str, fingerprint: bytes, answer: KeptAnswer) -> None:
        if len(answer.body) > MAX_ANSWER_BYTES:
            return
        mine = and_(_K.tenant == tenant, _K.owner == owner, _K.key == key, _K.fingerprint == fingerprint)
        first = update(schema.idempotency_keys).where(mine, _K.status.is_(None))
        kept = first.values(status=answer.status, answer=answer.body)
        self._database.write(tenant, lambda connection: connection.execute(kept), lasting=False)


def _claim(
    connection: Connection, tenant: str, owner: str, key: str, fingerprint: bytes, at: int, until: int
) -> KeptAnswer | None:
    _sweep(connection, tenant, at, all_of_them=fingerprint[0] == 0)
    claim = {"tenant": tenant, "owner": owner, "key": key, "fingerprint": fingerprint}
    row = claim | {"claimed_at": at, "expires_at": until}
    mine = and_(_K.tenant == tenant, _K.owner == owner, _K.key == key)
    connection.execute(delete(schema.idempotency_keys).where(mine, _K.expires_at <= at))
    connection.execute(insert(connection, schema.idempotency_keys).values(row).on_conflict_do_nothing())
    stored = connection.execute(select(_K.fingerprint, _K.status, _K.answer).where(mine)).one()
    if stored.fingerprint != fingerprint:
        raise InvalidInputError(
            "this Idempotency-Key was used for another request.", mend="Send a new key.", code="idempotency_key_reused"
        )
    return None if stored.status is None else KeptAnswer(stored.status, stored.answer)


def _sweep(connection: Connection, tenant: str, at: int, *, all_of_them: bool) -> None:
    """What has expired; with `all_of_them` (one claim in 256) also what is over the bound, which has to be counted."""
    key = (_K.tenant, _K.owner, _K.key)
    over = select(*key).where(_K.tenant == tenant, _K.expires_at <= at).order_by(_K.expires_at).limit(_SWEEP)
    connection.execute(delete(schema.idempotency_keys).where(tuple_(*key).in_(over)))
    if not all_of_them:
        return
    newest = select(_K.expires_at).where(_K.tenant == tenant).order_by(_K.expires_at.desc())
    oldest_kept = connection.scalar(newest.offset(MAX_KEYS).limit(1))
    if oldest_kept is not None:
        late = and_(_K.tenant == tenant, _K.expires_at <= oldest_kept)
        connection.execute(delete(schema.idempotency_keys).where(late))
