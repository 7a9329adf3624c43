"""operating it: acts on record, the last pass of each command, totals, batches held by a person, rejections of a study

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_DESTINATIONS = "storage_backend_configs"
_NOW = sa.text("clock_timestamp()")
_TIME = sa.DateTime(timezone=True)

_ACTS = "'FINALIZE', 'RETRY', 'HOLD', 'UNHOLD', 'CANCEL', 'PRIORITIZE', 'REROUTE', 'DISMISS', 'DESTINATION', 'DOWN', 'BACK', 'PRUNE'"
_STAGES = "'READY', 'SENT'"

# Upper bounds of the histograms, in seconds: those of examsend/queue/totals.py when this was written.
_BUCKETS = "ARRAY[1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400, 'Infinity'::float8]"


def upgrade() -> None:
    _batches()
    _rejections()
    op.add_column(_DESTINATIONS, sa.Column("accept_status", sa.Text()))
    op.add_column(_DESTINATIONS, sa.Column("fail_status", sa.Text()))
    for name in ("down_since", "told_at", "told_since"):
        op.add_column(_DESTINATIONS, sa.Column(name, _TIME))
    op.execute(f"UPDATE {_DESTINATIONS} SET down_since = clock_timestamp() WHERE held_until > clock_timestamp()")
    _events()
    _passes()
    _totals()
    _count_what_is_there()


def downgrade() -> None:
    for table in ("duration_totals", "status_totals", "delivery_totals", "command_passes", "events"):
        op.drop_table(table)
    for name in ("told_since", "told_at", "down_since", "fail_status", "accept_status"):
        op.drop_column(_DESTINATIONS, name)
    op.drop_index("ix_rejected_files_open", table_name="rejected_files")
    op.drop_index("ix_rejected_files_study", table_name="rejected_files")
    op.drop_constraint(op.f("ck_rejected_files_dismissed"), "rejected_files", type_="check")
    for name in (
        "dismissed_why", "dismissed_by", "dismissed_at", "reported_at", "sop_instance_uid", "study_instance_uid",
    ):  # fmt: skip
        op.drop_column("rejected_files", name)
    op.drop_index("ix_exam_batches_held", table_name="exam_batches")
    op.drop_index("ix_exam_batches_ready_at", table_name="exam_batches")
    # Held batches are due again.
    op.execute("UPDATE exam_batches SET next_attempt_at = clock_timestamp() WHERE next_attempt_at = 'infinity'")
    for name in ("prioritized_at", "held_reason", "held_at"):
        op.drop_column("exam_batches", name)
    op.create_index(
        "ix_exam_batches_ready_at",
        "exam_batches",
        ["destination_id", "ready_at"],
        postgresql_where=sa.text("status = 'READY'"),
    )


def _batches() -> None:
    op.add_column("exam_batches", sa.Column("held_at", _TIME))
    op.add_column("exam_batches", sa.Column("held_reason", sa.Text()))
    op.add_column("exam_batches", sa.Column("prioritized_at", _TIME))
    op.drop_index("ix_exam_batches_ready_at", table_name="exam_batches")
    op.create_index(
        "ix_exam_batches_ready_at",
        "exam_batches",
        ["destination_id", "ready_at"],
        postgresql_where=sa.text("status = 'READY' AND held_at IS NULL"),
    )
    op.create_index("ix_exam_batches_held", "exam_batches", ["id"], postgresql_where=sa.text("held_at IS NOT NULL"))


def _rejections() -> None:
    for name in ("study_instance_uid", "sop_instance_uid"):
        op.add_column("rejected_files", sa.Column(name, sa.Text()))
    for name in ("reported_at", "dismissed_at"):
        op.add_column("rejected_files", sa.Column(name, _TIME))
    for name in ("dismissed_by", "dismissed_why"):
        op.add_column("rejected_files", sa.Column(name, sa.Text()))
    # What is listed already was reported by each ingest so far.
    op.execute("UPDATE rejected_files SET reported_at = last_seen_at")
    op.create_check_constraint(
        op.f("ck_rejected_files_dismissed"),
        "rejected_files",
        "num_nulls(dismissed_at, dismissed_by, dismissed_why) IN (0, 3)",
    )
    op.create_index(
        "ix_rejected_files_study",
        "rejected_files",
        ["study_instance_uid"],
        postgresql_where=sa.text("study_instance_uid IS NOT NULL"),
    )
    op.create_index(
        "ix_rejected_files_open", "rejected_files", ["first_seen_at"], postgresql_where=sa.text("dismissed_at IS NULL")
    )


def _events() -> None:
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("at", _TIME, server_default=_NOW, nullable=False),
        sa.Column("act", sa.Text(), nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("batch_id", sa.BigInteger()),
        sa.Column("study_instance_uid", sa.Text()),
        sa.Column("destination_id", sa.BigInteger()),
        sa.Column("file_path", sa.Text()),
        sa.Column("why", sa.Text()),
        sa.CheckConstraint(f"act IN ({_ACTS})", name=op.f("ck_events_act")),
        sa.ForeignKeyConstraint(["destination_id"], [f"{_DESTINATIONS}.id"], name=op.f("fk_events_destination_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    op.create_index("ix_events_batch", "events", ["batch_id"], postgresql_where=sa.text("batch_id IS NOT NULL"))
    op.create_index(
        "ix_events_study", "events", ["study_instance_uid"], postgresql_where=sa.text("study_instance_uid IS NOT NULL")
    )
    op.create_index("ix_events_at", "events", ["at"])


def _passes() -> None:
    op.create_table(
        "command_passes",
        sa.Column("command", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("started_at", _TIME, nullable=False),
        sa.Column("finished_at", _TIME, nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("exit_code", sa.Integer(), nullable=False),
        sa.Column("passes", sa.BigInteger(), nullable=False),
        sa.Column("failures", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("command", "host", name=op.f("pk_command_passes")),
    )
    op.create_index("ix_command_passes_finished", "command_passes", ["command", "finished_at"])


def _number(name: str, kind: sa.types.TypeEngine[object] | None = None) -> sa.Column[object]:
    return sa.Column(name, kind or sa.BigInteger(), server_default=sa.text("0"), nullable=False)


def _totals() -> None:
    op.create_table(
        "delivery_totals",
        sa.Column("destination_id", sa.BigInteger(), nullable=False),
        sa.Column("hour", _TIME, nullable=False),
        sa.Column("shard", sa.SmallInteger(), nullable=False),
        _number("associations"),
        _number("established"),
        _number("released"),
        _number("association_seconds", sa.Double()),
        _number("stored"),
        _number("failed"),
        _number("resent"),
        _number("bytes_sent"),
        _number("sent_batches"),
        _number("failed_batches"),
        _number("sent_instances"),
        _number("ready_seconds", sa.Double()),
        _number("sent_seconds", sa.Double()),
        sa.ForeignKeyConstraint(
            ["destination_id"], [f"{_DESTINATIONS}.id"], name=op.f("fk_delivery_totals_destination_id")
        ),
        sa.PrimaryKeyConstraint("destination_id", "hour", "shard", name=op.f("pk_delivery_totals")),
    )
    op.create_table(
        "status_totals",
        sa.Column("destination_id", sa.BigInteger(), nullable=False),
        sa.Column("dimse_status", sa.Integer(), nullable=False),
        sa.Column("shard", sa.SmallInteger(), nullable=False),
        _number("answers"),
        sa.ForeignKeyConstraint(
            ["destination_id"], [f"{_DESTINATIONS}.id"], name=op.f("fk_status_totals_destination_id")
        ),
        sa.PrimaryKeyConstraint("destination_id", "dimse_status", "shard", name=op.f("pk_status_totals")),
    )
    op.create_table(
        "duration_totals",
        sa.Column("destination_id", sa.BigInteger(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("bucket", sa.Double(), nullable=False),
        sa.Column("shard", sa.SmallInteger(), nullable=False),
        _number("batches"),
        _number("seconds", sa.Double()),
        sa.CheckConstraint(f"stage IN ({_STAGES})", name=op.f("ck_duration_totals_stage")),
        sa.ForeignKeyConstraint(
            ["destination_id"], [f"{_DESTINATIONS}.id"], name=op.f("fk_duration_totals_destination_id")
        ),
        sa.PrimaryKeyConstraint("destination_id", "stage", "bucket", "shard", name=op.f("pk_duration_totals")),
    )


def _count_what_is_there() -> None:
    """Count the associations and batches so far. Of the statuses, the last one of each instance is known."""
    op.execute("""
        INSERT INTO delivery_totals (destination_id, hour, shard, associations, established, released, association_seconds,
                                     stored, failed, bytes_sent)
        SELECT destination_id, date_trunc('hour', finished_at, 'UTC'), 0, count(*), count(*) FILTER (WHERE established),
               count(*) FILTER (WHERE established AND result = 'RELEASED'), coalesce(sum(association_seconds), 0),
               sum(stored), sum(failed), sum(bytes_sent)
        FROM send_attempts WHERE finished_at IS NOT NULL GROUP BY 1, 2
    """)
    op.execute("""
        INSERT INTO delivery_totals (destination_id, hour, shard, sent_batches, failed_batches, sent_instances, ready_seconds,
                                     sent_seconds)
        SELECT b.destination_id, date_trunc('hour', b.finished_at, 'UTC'), 1, count(*) FILTER (WHERE b.status = 'SENT'),
               count(*) FILTER (WHERE b.status = 'FAILED'), coalesce(sum(n.instances) FILTER (WHERE b.status = 'SENT'), 0),
               coalesce(sum(extract(epoch FROM b.ready_at - b.created_at)) FILTER (WHERE b.status = 'SENT'), 0),
               coalesce(sum(extract(epoch FROM b.finished_at - b.ready_at)) FILTER (WHERE b.status = 'SENT'), 0)
        FROM exam_batches b
        LEFT JOIN (SELECT batch_id, count(*) AS instances FROM exam_batch_instances
                   WHERE outcome NOT IN ('SUPERSEDED', 'NOT_SENT') GROUP BY 1) n ON n.batch_id = b.id
        WHERE b.finished_at IS NOT NULL GROUP BY 1, 2
    """)
    op.execute("""
        INSERT INTO status_totals (destination_id, dimse_status, shard, answers)
        SELECT destination_id, dimse_status, 0, count(*) FROM exam_batch_instances WHERE dimse_status IS NOT NULL GROUP BY 1, 2
    """)
    op.execute(f"""
        INSERT INTO duration_totals (destination_id, stage, bucket, shard, batches, seconds)
        SELECT t.destination_id, t.stage,
               (SELECT min(u) FROM unnest({_BUCKETS}) u WHERE u >= t.seconds), 0, count(*), sum(t.seconds)
        FROM (SELECT b.destination_id, s.stage, greatest(s.seconds, 0)::float8 AS seconds FROM exam_batches b,
              LATERAL (VALUES ('READY', extract(epoch FROM b.ready_at - b.created_at)),
                              ('SENT', extract(epoch FROM b.finished_at - b.ready_at))) s (stage, seconds)
              WHERE b.status = 'SENT') t
        GROUP BY 1, 2, 3
    """)
