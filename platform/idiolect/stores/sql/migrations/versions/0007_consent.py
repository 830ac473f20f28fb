"""Consent for single domains, answers to requests that are sent again, and a person's own part of the audit log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0005"
branch_labels = None
depends_on = None


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False)


def upgrade() -> None:
    op.add_column("subjects", sa.Column("domains", sa.Text, nullable=True))
    op.create_table(
        "domain_refusals",
        _text("tenant"),
        _text("subject"),
        _text("domain"),
        sa.PrimaryKeyConstraint("tenant", "subject", "domain", name="pk_domain_refusals"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "idempotency_keys",
        _text("tenant"),
        _text("owner"),
        _text("key"),
        sa.Column("fingerprint", sa.LargeBinary, nullable=False),
        sa.Column("status", sa.BigInteger, nullable=True),
        sa.Column("answer", sa.LargeBinary, nullable=True),
        sa.Column("claimed_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "owner", "key", name="pk_idempotency_keys"),
        sqlite_with_rowid=False,
    )
    op.create_index("idempotency_keys_by_expiry", "idempotency_keys", ["tenant", "expires_at"])
    op.create_index("audit_entries_by_object", "audit_entries", ["tenant", "object", "seq"])


def downgrade() -> None:
    """Refusals of single domains are lost: those people are in again. Opt them out first."""
    op.drop_index("audit_entries_by_object", "audit_entries")
    op.drop_table("idempotency_keys")
    op.drop_table("domain_refusals")
    op.drop_column("subjects", "domains")
