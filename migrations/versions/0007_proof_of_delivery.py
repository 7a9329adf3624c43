"""proof of delivery: confirmation of SENT batches by their archives, and sources that are let go

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_DESTINATIONS = "storage_backend_configs"
_NOW = sa.text("clock_timestamp()")
_TIME = sa.DateTime(timezone=True)

_ACTS_BEFORE = "'FINALIZE', 'RETRY', 'HOLD', 'UNHOLD', 'CANCEL', 'PRIORITIZE', 'REROUTE', 'DISMISS', 'DESTINATION', 'DOWN', 'BACK', 'PRUNE'"
_ACTS = f"{_ACTS_BEFORE}, 'CONFIRM', 'DISPUTE'"

_CHECKS = {
    "confirm": "confirm IN ('none', 'commitment', 'query')",
    "on_disputed": "on_disputed IN ('resend', 'report')",
    "after": "after IN ('keep', 'remove') OR after LIKE 'move:/%'",
    "confirm_waits": "confirm_after_seconds BETWEEN 0 AND 1e9 AND confirm_timeout_seconds BETWEEN 1 AND 1e9"
    " AND confirm_backoff_seconds >= 0.01 AND confirm_backoff_max_seconds BETWEEN confirm_backoff_seconds AND 1e9",
    "confirm_instances": "confirm_instances BETWEEN 1 AND 10000",
}


def upgrade() -> None:
    for column in (
        sa.Column("confirm", sa.Text(), nullable=False, server_default="none"),
        sa.Column("confirm_to", sa.Text()),
        sa.Column("confirm_after_seconds", sa.Double(), nullable=False, server_default=sa.text("60")),
        sa.Column("confirm_timeout_seconds", sa.Double(), nullable=False, server_default=sa.text("86400")),
        sa.Column("confirm_backoff_seconds", sa.Double(), nullable=False, server_default=sa.text("120")),
        sa.Column("confirm_backoff_max_seconds", sa.Double(), nullable=False, server_default=sa.text("3600")),
        sa.Column("confirm_instances", sa.Integer(), nullable=False, server_default=sa.text("500")),
        sa.Column("on_disputed", sa.Text(), nullable=False, server_default="resend"),
        sa.Column("after", sa.Text(), nullable=False, server_default="keep"),
        sa.Column("sent_is_enough", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        sa.Column("confirm_held_until", _TIME),
        sa.Column("confirm_failures", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("confirm_problem", sa.Text()),
    ):
        op.add_column(_DESTINATIONS, column)
    for name, rule in _CHECKS.items():
        op.create_check_constraint(op.f(f"ck_{_DESTINATIONS}_{name}"), _DESTINATIONS, rule)
    _acts(_ACTS)
    _confirmations()
    _sources()


def downgrade() -> None:
    for table in (
        "source_removals", "ingested_directories", "instance_confirmations", "commitment_requests", "batch_confirmations",
    ):  # fmt: skip
        op.drop_table(table)
    op.execute("DELETE FROM events WHERE act IN ('CONFIRM', 'DISPUTE')")
    _acts(_ACTS_BEFORE)
    for name in reversed(_CHECKS):
        op.drop_constraint(op.f(f"ck_{_DESTINATIONS}_{name}"), _DESTINATIONS, type_="check")
    for name in (
        "confirm_problem", "confirm_failures", "confirm_held_until", "sent_is_enough", "after", "on_disputed",
        "confirm_instances", "confirm_backoff_max_seconds", "confirm_backoff_seconds", "confirm_timeout_seconds",
        "confirm_after_seconds", "confirm_to", "confirm",
    ):  # fmt: skip
        op.drop_column(_DESTINATIONS, name)


def _acts(acts: str) -> None:
    op.drop_constraint(op.f("ck_events_act"), "events", type_="check")
    op.create_check_constraint(op.f("ck_events_act"), "events", f"act IN ({acts})")


def _confirmations() -> None:
    op.create_table(
        "batch_confirmations",
        sa.Column("batch_id", sa.BigInteger(), nullable=False),
        sa.Column("destination_id", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), server_default="UNCONFIRMED", nullable=False),
        sa.Column("opened_at", _TIME, server_default=_NOW, nullable=False),
        sa.Column("method", sa.Text()),
        sa.Column("due_at", _TIME),
        sa.Column("tries", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("asked_at", _TIME),
        sa.Column("claim_id", sa.Uuid()),
        sa.Column("claimed_by", sa.Text()),
        sa.Column("confirmed_at", _TIME),
        sa.Column("disputed_at", _TIME),
        sa.Column("gave_up_at", _TIME),
        sa.Column("reason", sa.Text()),
        sa.Column("resent_batch_id", sa.BigInteger()),
        sa.Column("let_go_at", _TIME),
        sa.CheckConstraint(
            "state IN ('UNCONFIRMED', 'ASKED', 'CONFIRMED', 'DISPUTED')", name=op.f("ck_batch_confirmations_state")
        ),
        sa.CheckConstraint("method IN ('commitment', 'query')", name=op.f("ck_batch_confirmations_method")),
        sa.CheckConstraint(
            "(state = 'CONFIRMED') = (confirmed_at IS NOT NULL)", name=op.f("ck_batch_confirmations_confirmed")
        ),
        sa.CheckConstraint(
            "(state = 'DISPUTED') = (disputed_at IS NOT NULL)", name=op.f("ck_batch_confirmations_disputed")
        ),
        sa.CheckConstraint("claim_id IS NULL OR due_at IS NOT NULL", name=op.f("ck_batch_confirmations_claim")),
        sa.ForeignKeyConstraint(
            ["batch_id"], ["exam_batches.id"], name=op.f("fk_batch_confirmations_batch_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["destination_id"], [f"{_DESTINATIONS}.id"], name=op.f("fk_batch_confirmations_destination_id")
        ),
        sa.PrimaryKeyConstraint("batch_id", name=op.f("pk_batch_confirmations")),
    )
    op.create_index(
        "ix_batch_confirmations_due",
        "batch_confirmations",
        ["destination_id", "due_at"],
        postgresql_where=sa.text("due_at IS NOT NULL"),
    )
    op.create_index(
        "ix_batch_confirmations_open",
        "batch_confirmations",
        ["destination_id", "state", "opened_at"],
        postgresql_where=sa.text("state <> 'CONFIRMED'"),
    )
    op.create_index("ix_batch_confirmations_confirmed", "batch_confirmations", ["destination_id", "confirmed_at"])
    op.create_index(
        "ix_batch_confirmations_let_go",
        "batch_confirmations",
        ["destination_id", "let_go_at"],
        postgresql_where=sa.text("let_go_at IS NOT NULL"),
    )
    op.create_index(
        "ix_batch_confirmations_given_up",
        "batch_confirmations",
        ["destination_id", "state"],
        postgresql_where=sa.text("gave_up_at IS NOT NULL"),
    )
    op.create_index(
        "ix_batch_confirmations_resent",
        "batch_confirmations",
        ["resent_batch_id"],
        postgresql_where=sa.text("resent_batch_id IS NOT NULL"),
    )
    op.create_table(
        "commitment_requests",
        sa.Column("transaction_uid", sa.Text(), nullable=False),
        sa.Column("batch_id", sa.BigInteger(), nullable=False),
        sa.Column("archive_aet", sa.Text(), nullable=False),
        sa.Column("instance_ids", sa.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("requested_at", _TIME, server_default=_NOW, nullable=False),
        sa.Column("status", sa.Integer()),
        sa.Column("reported_at", _TIME),
        sa.Column("reports", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.ForeignKeyConstraint(
            ["batch_id"], ["exam_batches.id"], name=op.f("fk_commitment_requests_batch_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("transaction_uid", name=op.f("pk_commitment_requests")),
    )
    op.create_index("ix_commitment_requests_batch", "commitment_requests", ["batch_id"])
    op.create_table(
        "instance_confirmations",
        sa.Column("instance_id", sa.BigInteger(), nullable=False),
        sa.Column("batch_id", sa.BigInteger(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("proof", sa.Text()),
        sa.Column("requested_at", _TIME, nullable=False),
        sa.Column("answered_at", _TIME, server_default=_NOW, nullable=False),
        sa.Column("confirmed_at", _TIME),
        sa.Column("failure_reason", sa.Integer()),
        sa.Column("confirm_reason", sa.Text()),
        sa.Column("transaction_uid", sa.Text()),
        sa.Column("resent_at", _TIME),
        sa.CheckConstraint(
            "verdict IN ('CONFIRMED', 'ABSENT', 'LATER', 'UNCONFIRMABLE', 'CONFLICT', 'SENT_AGAIN')",
            name=op.f("ck_instance_confirmations_verdict"),
        ),
        sa.CheckConstraint("proof IN ('COMMITTED', 'LISTED', 'COUNTED')", name=op.f("ck_instance_confirmations_proof")),
        sa.CheckConstraint(
            "(verdict = 'CONFIRMED') = (confirmed_at IS NOT NULL) AND (verdict = 'CONFIRMED') = (proof IS NOT NULL)",
            name=op.f("ck_instance_confirmations_confirmed"),
        ),
        sa.ForeignKeyConstraint(
            ["instance_id"],
            ["exam_batch_instances.id"],
            name=op.f("fk_instance_confirmations_instance_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("instance_id", name=op.f("pk_instance_confirmations")),
    )
    op.create_index("ix_instance_confirmations_batch", "instance_confirmations", ["batch_id"])


def _sources() -> None:
    op.create_table(
        "ingested_directories",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("first_seen_at", _TIME, server_default=_NOW, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ingested_directories")),
    )
    op.create_index("uq_ingested_directories_path", "ingested_directories", [sa.text("md5(path)")], unique=True)
    op.create_table(
        "source_removals",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("content_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("file_size", sa.BigInteger(), nullable=False),
        sa.Column("file_inode", sa.BigInteger(), nullable=False),
        sa.Column("study_instance_uid", sa.Text(), nullable=False),
        sa.Column("sop_instance_uid", sa.Text(), nullable=False),
        sa.Column("move_to", sa.Text()),
        sa.Column("proof", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("decided_at", _TIME, server_default=_NOW, nullable=False),
        sa.Column("removed_at", _TIME),
        sa.Column("kept_at", _TIME),
        sa.CheckConstraint("removed_at IS NULL OR kept_at IS NULL", name=op.f("ck_source_removals_ended")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_source_removals")),
    )
    op.create_index(
        "ix_source_removals_open",
        "source_removals",
        ["decided_at"],
        postgresql_where=sa.text("removed_at IS NULL AND kept_at IS NULL"),
    )
    op.create_index("ix_source_removals_study", "source_removals", ["study_instance_uid"])
    op.create_index("ix_source_removals_path", "source_removals", ["path"], postgresql_using="hash")
