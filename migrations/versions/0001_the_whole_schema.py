"""the whole schema

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from examsend.db import adopt

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


_METADATA = sa.MetaData()

_REJECTED_FILES = sa.Table(
    "rejected_files",
    _METADATA,
    sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column("file_path", sa.Text(), nullable=False),
    sa.Column("file_size", sa.BigInteger(), nullable=False),
    sa.Column("file_mtime_ns", sa.BigInteger(), nullable=False),
    sa.Column("reason_code", sa.Text(), nullable=False),
    sa.Column("reason", sa.Text(), nullable=False),
    sa.Column("first_seen_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
    sa.Column("last_seen_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
    sa.PrimaryKeyConstraint("id", name="pk_rejected_files"),
)

_STORAGE_BACKEND_CONFIGS = sa.Table(
    "storage_backend_configs",
    _METADATA,
    sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column("name", sa.Text(), nullable=False),
    sa.Column("kind", sa.Text(), server_default="dimse", nullable=False),
    sa.Column("host", sa.Text(), nullable=False),
    sa.Column("port", sa.Integer(), nullable=False),
    sa.Column("called_aet", sa.Text(), nullable=False),
    sa.Column("calling_aet", sa.Text(), server_default="EXAMSEND", nullable=False),
    sa.Column("sender", sa.Text(), nullable=False),
    sa.Column("enabled", sa.Boolean(), server_default=sa.text("true"), nullable=False),
    sa.Column("is_default", sa.Boolean(), server_default=sa.text("true"), nullable=False),
    sa.Column("quiet_seconds", sa.Double(), server_default=sa.text("60"), nullable=False),
    sa.Column("longest_wait_seconds", sa.Double(), server_default=sa.text("5400"), nullable=False),
    sa.Column("grace_seconds", sa.Double(), server_default=sa.text("2"), nullable=False),
    sa.Column("on_incomplete", sa.Text(), server_default="send", nullable=False),
    sa.Column("late_policy", sa.Text(), server_default="new-only", nullable=False),
    sa.Column("expect_from", sa.Text(), nullable=True),
    sa.Column("association_limit", sa.Integer(), server_default=sa.text("1"), nullable=False),
    sa.Column("associations_per_study", sa.Integer(), server_default=sa.text("1"), nullable=False),
    sa.Column("async_window", sa.Integer(), server_default=sa.text("1"), nullable=False),
    sa.Column("priority", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
    sa.Column("transcode", sa.Text(), server_default="never", nullable=False),
    sa.Column("max_attempts", sa.Integer(), server_default=sa.text("10"), nullable=False),
    sa.Column("backoff_seconds", sa.Double(), server_default=sa.text("30"), nullable=False),
    sa.Column("backoff_max_seconds", sa.Double(), server_default=sa.text("600"), nullable=False),
    sa.Column("expire_seconds", sa.Double(), server_default=sa.text("432000"), nullable=False),
    sa.Column("connect_timeout", sa.Double(), server_default=sa.text("10"), nullable=False),
    sa.Column("accept_timeout", sa.Double(), server_default=sa.text("30"), nullable=False),
    sa.Column("answer_timeout", sa.Double(), server_default=sa.text("60"), nullable=False),
    sa.Column("stall_timeout", sa.Double(), server_default=sa.text("60"), nullable=False),
    sa.Column("tls", sa.Boolean(), server_default=sa.text("false"), nullable=False),
    sa.Column("tls_ca_file", sa.Text(), nullable=True),
    sa.Column("tls_cert_file", sa.Text(), nullable=True),
    sa.Column("tls_key_file", sa.Text(), nullable=True),
    sa.Column("tls_server_name", sa.Text(), nullable=True),
    sa.Column("tls_pin_sha256", sa.Text(), nullable=True),
    sa.Column("user_identity_kind", sa.SmallInteger(), nullable=True),
    sa.Column("user_identity_name", sa.Text(), nullable=True),
    sa.Column("user_identity_file", sa.Text(), nullable=True),
    sa.Column("held_until", sa.DateTime(timezone=True), nullable=True),
    sa.Column("held_code", sa.Text(), nullable=True),
    sa.Column("held_reason", sa.Text(), nullable=True),
    sa.Column("consecutive_failures", sa.Integer(), server_default=sa.text("0"), nullable=False),
    sa.Column("last_success_at", sa.DateTime(timezone=True), nullable=True),
    sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
    sa.Column("removed_at", sa.DateTime(timezone=True), nullable=True),
    sa.CheckConstraint(
        "late_policy IN ('new-only', 'resend-all', 'never')", name="ck_storage_backend_configs_late_policy"
    ),
    sa.CheckConstraint("on_incomplete IN ('send', 'hold')", name="ck_storage_backend_configs_on_incomplete"),
    sa.CheckConstraint(
        "sender IN ('native', 'pynetdicom', 'dcm4che', 'dcmtk')", name="ck_storage_backend_configs_sender"
    ),
    sa.CheckConstraint(
        "association_limit >= 1 AND associations_per_study >= 1 AND async_window >= 0",
        name="ck_storage_backend_configs_limits",
    ),
    sa.CheckConstraint(
        "connect_timeout > 0 AND accept_timeout > 0 AND answer_timeout > 0 AND stall_timeout > 0",
        name="ck_storage_backend_configs_timeouts",
    ),
    sa.CheckConstraint(
        "length(called_aet) BETWEEN 1 AND 16 AND length(calling_aet) BETWEEN 1 AND 16",
        name="ck_storage_backend_configs_aet",
    ),
    sa.CheckConstraint(
        "length(name) BETWEEN 1 AND 64 OR removed_at IS NOT NULL", name="ck_storage_backend_configs_name"
    ),
    sa.CheckConstraint("max_attempts >= 1", name="ck_storage_backend_configs_max_attempts"),
    sa.CheckConstraint("port BETWEEN 1 AND 65535", name="ck_storage_backend_configs_port"),
    sa.CheckConstraint(
        "quiet_seconds >= 0 AND longest_wait_seconds >= 0 AND grace_seconds >= 0 AND backoff_seconds > 0 AND backoff_max_seconds >= backoff_seconds AND expire_seconds > 0",
        name="ck_storage_backend_configs_waits",
    ),
    sa.PrimaryKeyConstraint("id", name="pk_storage_backend_configs"),
    sa.UniqueConstraint("name", name="uq_storage_backend_configs_name"),
)

_STUDY_EXPECTATIONS = sa.Table(
    "study_expectations",
    _METADATA,
    sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column("study_instance_uid", sa.Text(), nullable=False),
    sa.Column("source", sa.Text(), nullable=False),
    sa.Column("source_uid", sa.Text(), server_default="", nullable=False),
    sa.Column("state", sa.Text(), nullable=False),
    sa.Column("expected_count", sa.Integer(), nullable=True),
    sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
    sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
    sa.CheckConstraint(
        "source IN ('MPPS', 'MANIFEST', 'COUNT', 'ARCHIVE', 'FILES')", name="ck_study_expectations_source"
    ),
    sa.CheckConstraint("state IN ('IN PROGRESS', 'COMPLETED', 'DISCONTINUED')", name="ck_study_expectations_state"),
    sa.CheckConstraint("expected_count >= 0", name="ck_study_expectations_count"),
    sa.PrimaryKeyConstraint("id", name="pk_study_expectations"),
    sa.UniqueConstraint(
        "study_instance_uid",
        "source",
        "source_uid",
        name="uq_study_expectations_study_instance_uid_source_source_uid",
    ),
)

_EXAM_BATCHES = sa.Table(
    "exam_batches",
    _METADATA,
    sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column("study_instance_uid", sa.Text(), nullable=False),
    sa.Column("destination_id", sa.BigInteger(), nullable=False),
    sa.Column("status", sa.Text(), server_default="PENDING", nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
    sa.Column(
        "last_instance_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
    ),
    sa.Column("ready_at", sa.DateTime(timezone=True), nullable=True),
    sa.Column("ready_reason", sa.Text(), nullable=True),
    sa.Column("follows_batch_id", sa.BigInteger(), nullable=True),
    sa.Column("next_attempt_at", sa.DateTime(timezone=True), nullable=True),
    sa.Column("attempt_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
    sa.Column("attempt_id", sa.Uuid(), nullable=True),
    sa.Column("claimed_by", sa.Text(), nullable=True),
    sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
    sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
    sa.Column("failure_code", sa.Text(), nullable=True),
    sa.Column("failure", sa.Text(), nullable=True),
    sa.CheckConstraint("(status = 'READY') = (next_attempt_at IS NOT NULL)", name="ck_exam_batches_due"),
    sa.CheckConstraint(
        "(status = 'SENDING') = (attempt_id IS NOT NULL) AND (status = 'SENDING') = (lease_expires_at IS NOT NULL)",
        name="ck_exam_batches_claim",
    ),
    sa.CheckConstraint("(status IN ('SENT', 'FAILED')) = (finished_at IS NOT NULL)", name="ck_exam_batches_finished"),
    sa.CheckConstraint("status <> 'FAILED' OR failure_code IS NOT NULL", name="ck_exam_batches_failure"),
    sa.CheckConstraint("status = 'PENDING' OR ready_at IS NOT NULL", name="ck_exam_batches_ready"),
    sa.CheckConstraint("status IN ('PENDING', 'READY', 'SENDING', 'SENT', 'FAILED')", name="ck_exam_batches_status"),
    sa.ForeignKeyConstraint(["destination_id"], ["storage_backend_configs.id"], name="fk_exam_batches_destination_id"),
    sa.ForeignKeyConstraint(
        ["follows_batch_id"],
        ["exam_batches.id"],
        name="fk_exam_batches_follows_batch_id",
        ondelete="SET NULL",
    ),
    sa.PrimaryKeyConstraint("id", name="pk_exam_batches"),
    sa.UniqueConstraint("id", "destination_id", name="uq_exam_batches_id_destination_id"),
)

_EXPECTED_INSTANCES = sa.Table(
    "expected_instances",
    _METADATA,
    sa.Column("expectation_id", sa.BigInteger(), nullable=False),
    sa.Column("sop_instance_uid", sa.Text(), nullable=False),
    sa.Column("series_instance_uid", sa.Text(), nullable=True),
    sa.ForeignKeyConstraint(
        ["expectation_id"],
        ["study_expectations.id"],
        name="fk_expected_instances_expectation_id",
        ondelete="CASCADE",
    ),
    sa.PrimaryKeyConstraint("expectation_id", "sop_instance_uid", name="pk_expected_instances"),
)

_EXAM_BATCH_INSTANCES = sa.Table(
    "exam_batch_instances",
    _METADATA,
    sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column("batch_id", sa.BigInteger(), nullable=False),
    sa.Column("destination_id", sa.BigInteger(), nullable=False),
    sa.Column("sop_instance_uid", sa.Text(), nullable=False),
    sa.Column("series_instance_uid", sa.Text(), nullable=False),
    sa.Column("sop_class_uid", sa.Text(), nullable=False),
    sa.Column("transfer_syntax_uid", sa.Text(), nullable=False),
    sa.Column("series_number", sa.BigInteger(), nullable=True),
    sa.Column("instance_number", sa.BigInteger(), nullable=True),
    sa.Column("file_path", sa.Text(), nullable=False),
    sa.Column("mount_point", sa.Text(), nullable=True),
    sa.Column("file_size", sa.BigInteger(), nullable=False),
    sa.Column("file_mtime_ns", sa.BigInteger(), nullable=False),
    sa.Column("dataset_offset", sa.BigInteger(), nullable=False),
    sa.Column("content_sha256", sa.LargeBinary(), nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
    sa.Column("outcome", sa.Text(), server_default="WAITING", nullable=False),
    sa.Column("dimse_status", sa.Integer(), nullable=True),
    sa.Column("error_comment", sa.Text(), nullable=True),
    sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
    sa.Column("lost_in_flight", sa.Integer(), server_default=sa.text("0"), nullable=False),
    sa.Column("stored_at", sa.DateTime(timezone=True), nullable=True),
    sa.CheckConstraint("(outcome = 'STORED') = (stored_at IS NOT NULL)", name="ck_exam_batch_instances_stored"),
    sa.CheckConstraint(
        "outcome IN ('WAITING', 'RETRY', 'STORED', 'FAILED', 'CONFLICT', 'CHANGED', 'MISSING', 'SUPERSEDED', 'NOT_SENT')",
        name="ck_exam_batch_instances_outcome",
    ),
    sa.CheckConstraint("dataset_offset >= 0 AND file_size >= dataset_offset", name="ck_exam_batch_instances_size"),
    sa.CheckConstraint("octet_length(content_sha256) = 32", name="ck_exam_batch_instances_sha256"),
    sa.ForeignKeyConstraint(
        ["batch_id", "destination_id"],
        ["exam_batches.id", "exam_batches.destination_id"],
        name="fk_exam_batch_instances_batch",
        ondelete="CASCADE",
    ),
    sa.PrimaryKeyConstraint("id", name="pk_exam_batch_instances"),
)

_SEND_ATTEMPTS = sa.Table(
    "send_attempts",
    _METADATA,
    sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column("batch_id", sa.BigInteger(), nullable=False),
    sa.Column("destination_id", sa.BigInteger(), nullable=False),
    sa.Column("attempt_id", sa.Uuid(), nullable=False),
    sa.Column("association", sa.Integer(), server_default=sa.text("1"), nullable=False),
    sa.Column("host", sa.Text(), nullable=False),
    sa.Column("pid", sa.Integer(), nullable=False),
    sa.Column("sender", sa.Text(), nullable=False),
    sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
    sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
    sa.Column("association_seconds", sa.Double(), nullable=True),
    sa.Column("result", sa.Text(), server_default="RUNNING", nullable=False),
    sa.Column("established", sa.Boolean(), server_default=sa.text("false"), nullable=False),
    sa.Column("result_code", sa.Integer(), nullable=True),
    sa.Column("source_code", sa.Integer(), nullable=True),
    sa.Column("reason_code", sa.Integer(), nullable=True),
    sa.Column("detail", sa.Text(), nullable=True),
    sa.Column("peer_implementation", sa.Text(), nullable=True),
    sa.Column("async_window", sa.Integer(), nullable=True),
    sa.Column("instances", sa.Integer(), server_default=sa.text("0"), nullable=False),
    sa.Column("stored", sa.Integer(), server_default=sa.text("0"), nullable=False),
    sa.Column("failed", sa.Integer(), server_default=sa.text("0"), nullable=False),
    sa.Column("octets", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
    sa.CheckConstraint("(result = 'RUNNING') = (finished_at IS NULL)", name="ck_send_attempts_finished"),
    sa.ForeignKeyConstraint(["batch_id"], ["exam_batches.id"], name="fk_send_attempts_batch_id", ondelete="CASCADE"),
    sa.ForeignKeyConstraint(["destination_id"], ["storage_backend_configs.id"], name="fk_send_attempts_destination_id"),
    sa.PrimaryKeyConstraint("id", name="pk_send_attempts"),
    sa.UniqueConstraint("attempt_id", "association", name="uq_send_attempts_attempt_id_association"),
)

_EXAM_BATCH_INSTANCE_ALIASES = sa.Table(
    "exam_batch_instance_aliases",
    _METADATA,
    sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column("instance_id", sa.BigInteger(), nullable=False),
    sa.Column("file_path", sa.Text(), nullable=False),
    sa.Column("file_size", sa.BigInteger(), nullable=False),
    sa.Column("file_mtime_ns", sa.BigInteger(), nullable=False),
    sa.ForeignKeyConstraint(
        ["instance_id"],
        ["exam_batch_instances.id"],
        name="fk_exam_batch_instance_aliases_instance_id",
        ondelete="CASCADE",
    ),
    sa.PrimaryKeyConstraint("id", name="pk_exam_batch_instance_aliases"),
)


_ORDER = (
    _REJECTED_FILES,
    _STORAGE_BACKEND_CONFIGS,
    _STUDY_EXPECTATIONS,
    _EXAM_BATCHES,
    _EXPECTED_INSTANCES,
    _EXAM_BATCH_INSTANCES,
    _SEND_ATTEMPTS,
    _EXAM_BATCH_INSTANCE_ALIASES,
)
"""Each after the tables it points at."""


def upgrade() -> None:
    # A database may hold the three tables of the project's first document: these are kept, and given what they lack.
    there = set(sa.inspect(op.get_bind()).get_table_names())
    if _EXAM_BATCH_INSTANCES.name in there:
        op.alter_column("exam_batch_instances", "processed_filepath", new_column_name="file_path")
    adopted = [table for table in _ORDER if table.name in there]
    for table in adopted:
        adopt.add_columns(op.get_bind(), table)
    if _EXAM_BATCHES in adopted:
        adopt.check_states(op.get_bind(), _EXAM_BATCHES)
    for statement in _fill({table.name for table in adopted}):
        op.execute(statement)
    for table in _ORDER:
        if table in adopted:
            adopt.add_constraints(op.get_bind(), table, nullable=_READ_LATER)
        else:
            table.create(op.get_bind())
    op.create_index("ix_rejected_files_last_seen", "rejected_files", ["last_seen_at"], unique=False)
    op.create_index("uq_rejected_files_path", "rejected_files", [sa.literal_column("md5(file_path)")], unique=True)
    op.create_index(
        "ix_exam_batches_due",
        "exam_batches",
        ["destination_id", "next_attempt_at"],
        unique=False,
        postgresql_where=sa.text("status = 'READY'"),
    )
    op.create_index(
        "ix_exam_batches_failed",
        "exam_batches",
        ["destination_id", "finished_at"],
        unique=False,
        postgresql_where=sa.text("status = 'FAILED'"),
    )
    op.create_index(
        "ix_exam_batches_finished",
        "exam_batches",
        ["finished_at"],
        unique=False,
        postgresql_where=sa.text("finished_at IS NOT NULL"),
    )
    op.create_index(
        "ix_exam_batches_follows",
        "exam_batches",
        ["follows_batch_id"],
        unique=False,
        postgresql_where=sa.text("follows_batch_id IS NOT NULL"),
    )
    op.create_index(
        "ix_exam_batches_lease",
        "exam_batches",
        ["destination_id", "lease_expires_at"],
        unique=False,
        postgresql_where=sa.text("status = 'SENDING'"),
    )
    op.create_index(
        "ix_exam_batches_opened",
        "exam_batches",
        ["destination_id", "created_at"],
        unique=False,
        postgresql_where=sa.text("status = 'PENDING'"),
    )
    op.create_index(
        "ix_exam_batches_quiet",
        "exam_batches",
        ["destination_id", "last_instance_at"],
        unique=False,
        postgresql_where=sa.text("status = 'PENDING'"),
    )
    op.create_index(
        "ix_exam_batches_ready_at",
        "exam_batches",
        ["destination_id", "ready_at"],
        unique=False,
        postgresql_where=sa.text("status = 'READY'"),
    )
    op.create_index("ix_exam_batches_study", "exam_batches", ["study_instance_uid", "destination_id"], unique=False)
    op.create_index(
        "uq_exam_batches_pending",
        "exam_batches",
        ["study_instance_uid", "destination_id"],
        unique=True,
        postgresql_where=sa.text("status = 'PENDING'"),
    )
    op.create_index(
        "uq_exam_batches_sending",
        "exam_batches",
        ["study_instance_uid", "destination_id"],
        unique=True,
        postgresql_where=sa.text("status = 'SENDING'"),
    )
    op.create_index("ix_exam_batch_instances_batch", "exam_batch_instances", ["batch_id"], unique=False)
    op.create_index(
        "ix_exam_batch_instances_known", "exam_batch_instances", ["destination_id", "sop_instance_uid"], unique=False
    )
    op.create_index(
        "ix_exam_batch_instances_path", "exam_batch_instances", ["file_path"], unique=False, postgresql_using="hash"
    )
    op.create_index(
        "ix_exam_batch_instances_unsent",
        "exam_batch_instances",
        ["batch_id"],
        unique=False,
        postgresql_where=sa.text("outcome NOT IN ('STORED', 'SUPERSEDED')"),
    )
    op.create_index(
        "uq_exam_batch_instances_version",
        "exam_batch_instances",
        ["batch_id", "sop_instance_uid"],
        unique=True,
        postgresql_where=sa.text("outcome <> 'SUPERSEDED'"),
    )
    op.create_index("ix_send_attempts_batch", "send_attempts", ["batch_id"], unique=False)
    op.create_index("ix_send_attempts_destination", "send_attempts", ["destination_id", "started_at"], unique=False)
    op.create_index(
        "ix_exam_batch_instance_aliases_path",
        "exam_batch_instance_aliases",
        ["file_path"],
        unique=False,
        postgresql_using="hash",
    )
    op.create_index(
        "uq_exam_batch_instance_aliases_path",
        "exam_batch_instance_aliases",
        ["instance_id", sa.literal_column("md5(file_path)")],
        unique=True,
    )


_READ_LATER = frozenset(
    {
        "series_instance_uid",
        "sop_class_uid",
        "transfer_syntax_uid",
        "file_size",
        "file_mtime_ns",
        "dataset_offset",
        "content_sha256",
    }
)
"""Columns that the document's rows do not fill: they are read from the files later (and may be NULL from 0002 on)."""

_ADDRESS_MISSING = (
    "the earlier database does not say its address: `examsend destination set NAME --address AET@HOST:PORT`,"
    " then `examsend destination enable NAME`"
)


def _fill(adopted: set[str]) -> list[str]:
    """Return the statements that say of the document's rows what the schema asks for, destinations first."""
    statements = []
    if "storage_backend_configs" in adopted:
        statements += [
            f"""UPDATE storage_backend_configs
                SET enabled = false, is_default = false, held_code = 'ADDRESS_MISSING', held_reason = '{_ADDRESS_MISSING}'
                WHERE host IS NULL OR port IS NULL OR called_aet IS NULL""",
            """UPDATE storage_backend_configs
               SET host = coalesce(host, 'unknown.invalid'), port = coalesce(port, 104),
                   called_aet = coalesce(called_aet, 'UNKNOWN'), sender = coalesce(sender, 'native')""",
        ]
    if "exam_batches" in adopted:
        statements += [
            "ALTER TABLE exam_batches ADD COLUMN IF NOT EXISTS updated_at timestamptz",
            # A sender of the earlier program is not there any more; a study has one PENDING batch for a destination.
            """UPDATE exam_batches b
               SET ready_reason = 'ADOPTED: it was ' || b.status || ' in the earlier database',
                   status = CASE WHEN b.status = 'SENDING' OR b.status = 'PENDING' AND EXISTS (
                                      SELECT 1 FROM exam_batches n
                                      WHERE n.study_instance_uid = b.study_instance_uid AND n.status = 'PENDING'
                                        AND n.destination_id = b.destination_id AND n.id > b.id)
                                 THEN 'READY' ELSE b.status END""",
            """UPDATE exam_batches
               SET last_instance_at = coalesce(updated_at, created_at),
                   ready_at = CASE status WHEN 'PENDING' THEN NULL WHEN 'READY' THEN clock_timestamp()
                              ELSE coalesce(updated_at, created_at) END,
                   ready_reason = CASE WHEN status <> 'PENDING' THEN ready_reason END,
                   next_attempt_at = CASE WHEN status = 'READY' THEN clock_timestamp() END,
                   finished_at = CASE WHEN status IN ('SENT', 'FAILED') THEN coalesce(updated_at, created_at) END,
                   failure_code = CASE WHEN status = 'FAILED' THEN 'UNKNOWN' END,
                   failure = CASE WHEN status = 'FAILED' THEN 'it was FAILED in the earlier database, which does not say why' END""",
        ]
    if "exam_batch_instances" in adopted:
        statements.append(
            """UPDATE exam_batch_instances i
               SET destination_id = b.destination_id, file_path = coalesce(i.file_path, ''),
                   outcome = CASE b.status WHEN 'SENT' THEN 'STORED' WHEN 'FAILED' THEN 'FAILED' ELSE 'WAITING' END,
                   stored_at = CASE WHEN b.status = 'SENT' THEN b.finished_at END,
                   error_comment = CASE WHEN b.status = 'FAILED' THEN 'its batch was FAILED in the earlier database' END
               FROM exam_batches b WHERE b.id = i.batch_id"""
        )
    return statements


def downgrade() -> None:
    op.drop_index("uq_exam_batch_instance_aliases_path", table_name="exam_batch_instance_aliases")
    op.drop_index(
        "ix_exam_batch_instance_aliases_path", table_name="exam_batch_instance_aliases", postgresql_using="hash"
    )
    op.drop_table("exam_batch_instance_aliases")
    op.drop_index("ix_send_attempts_destination", table_name="send_attempts")
    op.drop_index("ix_send_attempts_batch", table_name="send_attempts")
    op.drop_table("send_attempts")
    op.drop_index(
        "uq_exam_batch_instances_version",
        table_name="exam_batch_instances",
        postgresql_where=sa.text("outcome <> 'SUPERSEDED'"),
    )
    op.drop_index(
        "ix_exam_batch_instances_unsent",
        table_name="exam_batch_instances",
        postgresql_where=sa.text("outcome NOT IN ('STORED', 'SUPERSEDED')"),
    )
    op.drop_index("ix_exam_batch_instances_path", table_name="exam_batch_instances", postgresql_using="hash")
    op.drop_index("ix_exam_batch_instances_known", table_name="exam_batch_instances")
    op.drop_index("ix_exam_batch_instances_batch", table_name="exam_batch_instances")
    op.drop_table("exam_batch_instances")
    op.drop_table("expected_instances")
    op.drop_index("uq_exam_batches_sending", table_name="exam_batches", postgresql_where=sa.text("status = 'SENDING'"))
    op.drop_index("uq_exam_batches_pending", table_name="exam_batches", postgresql_where=sa.text("status = 'PENDING'"))
    op.drop_index("ix_exam_batches_study", table_name="exam_batches")
    op.drop_index("ix_exam_batches_ready_at", table_name="exam_batches", postgresql_where=sa.text("status = 'READY'"))
    op.drop_index("ix_exam_batches_quiet", table_name="exam_batches", postgresql_where=sa.text("status = 'PENDING'"))
    op.drop_index("ix_exam_batches_opened", table_name="exam_batches", postgresql_where=sa.text("status = 'PENDING'"))
    op.drop_index("ix_exam_batches_lease", table_name="exam_batches", postgresql_where=sa.text("status = 'SENDING'"))
    op.drop_index(
        "ix_exam_batches_follows", table_name="exam_batches", postgresql_where=sa.text("follows_batch_id IS NOT NULL")
    )
    op.drop_index(
        "ix_exam_batches_finished", table_name="exam_batches", postgresql_where=sa.text("finished_at IS NOT NULL")
    )
    op.drop_index("ix_exam_batches_failed", table_name="exam_batches", postgresql_where=sa.text("status = 'FAILED'"))
    op.drop_index("ix_exam_batches_due", table_name="exam_batches", postgresql_where=sa.text("status = 'READY'"))
    op.drop_table("exam_batches")
    op.drop_table("study_expectations")
    op.drop_table("storage_backend_configs")
    op.drop_index("uq_rejected_files_path", table_name="rejected_files")
    op.drop_index("ix_rejected_files_last_seen", table_name="rejected_files")
    op.drop_table("rejected_files")
