"""Row-level security between tenants, on Postgres (`tenant_wall`). SQLite has none."""

from __future__ import annotations

from alembic import op

from idiolect.stores.sql.tenant_wall import TENANT, raising, razing

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_WITH_TENANT = (
    "api_keys",
    "audit_entries",
    "audit_heads",
    "comparisons",
    "datasets",
    "domain_refusals",
    "evaluation_pairs",
    "idempotency_keys",
    "inference_texts",
    "inferences",
    "items",
    "ledger_accounts",
    "ledger_charges",
    "ledger_runs",
    "pointer_history",
    "pointers",
    "ratings",
    "releases",
    "resets",
    "rollout_history",
    "rollout_members",
    "rollout_slots",
    "rollout_tallies",
    "rollouts",
    "signals",
    "subjects",
    "texts",
    "tombstones",
    "training_queue",
    "upstreams",
    "versions",
)
_OTHERS = {
    "tenants": f"name = {TENANT}",
    "dataset_items": "dataset IN (SELECT id FROM datasets)",  # which has a wall of its own
}


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        return
    for table in _WITH_TENANT:
        for statement in raising(table):
            op.execute(statement)
    for table, mine in _OTHERS.items():
        for statement in raising(table, mine):
            op.execute(statement)


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        return
    for table in (*_OTHERS, *_WITH_TENANT):
        for statement in razing(table):
            op.execute(statement)
