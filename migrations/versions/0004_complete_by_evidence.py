"""complete by evidence: announcements, series, when a batch is looked at

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_DESTINATIONS = "storage_backend_configs"

_POLICIES = "'new-only', 'resend-all', 'never'"

_WAITS = (
    "quiet_seconds BETWEEN 0 AND 1e9 AND longest_wait_seconds BETWEEN 0 AND 1e9 AND grace_seconds BETWEEN 0 AND 1e9"
    "{series} AND backoff_seconds >= 0.01 AND backoff_max_seconds BETWEEN backoff_seconds AND 1e9"
    " AND expire_seconds BETWEEN 1 AND 1e9"
)

_NOW = sa.text("clock_timestamp()")

_SERIES = """
    INSERT INTO study_series (destination_id, study_instance_uid, series_instance_uid, last_instance_at)
    SELECT b.destination_id, b.study_instance_uid, i.series_instance_uid, max(i.created_at)
    FROM exam_batches b JOIN exam_batch_instances i ON i.batch_id = b.id
    WHERE i.series_instance_uid IS NOT NULL
    GROUP BY b.destination_id, b.study_instance_uid, i.series_instance_uid
"""


def upgrade() -> None:
    op.add_column(_DESTINATIONS, sa.Column("required_series", sa.Text()))
    op.add_column(
        _DESTINATIONS,
        sa.Column("series_quiet_seconds", sa.Double(), nullable=False, server_default=sa.text("10")),
    )
    op.add_column(_DESTINATIONS, sa.Column("late_cutoff_hours", sa.Double()))
    op.add_column(_DESTINATIONS, sa.Column("late_policy_after", sa.Text(), nullable=False, server_default="never"))
    _replace_waits(_WAITS.format(series=" AND series_quiet_seconds BETWEEN 0 AND 1e9"))
    _check(_DESTINATIONS, "late_policy_after", f"late_policy_after IN ({_POLICIES})")
    _check(_DESTINATIONS, "late_cutoff", "late_cutoff_hours BETWEEN 0 AND 1e6")

    op.add_column(
        "exam_batches", sa.Column("check_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW)
    )
    op.add_column("exam_batches", sa.Column("ask_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW))
    op.add_column("exam_batches", sa.Column("grown", sa.Boolean(), nullable=False, server_default=sa.text("true")))
    op.drop_index("ix_exam_batches_quiet", "exam_batches")
    op.drop_index("ix_exam_batches_opened", "exam_batches")
    pending = sa.text("status = 'PENDING'")
    op.create_index("ix_exam_batches_check", "exam_batches", ["destination_id", "check_at"], postgresql_where=pending)
    op.create_index("ix_exam_batches_ask", "exam_batches", ["destination_id", "ask_at"], postgresql_where=pending)

    # Nothing was announced before.
    op.drop_table("expected_instances")
    op.drop_table("study_expectations")
    _create_announcements()
    op.execute(_SERIES)


def _create_announcements() -> None:
    op.create_table(
        "study_expectations",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("source_uid", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("expected_count", sa.Integer()),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
        sa.Column("changed", sa.Boolean(), nullable=False, server_default=sa.text("true")),
        sa.Column("forgotten_at", sa.DateTime(timezone=True)),
        sa.Column("asked_at", sa.DateTime(timezone=True)),
        sa.Column("failure", sa.Text()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_study_expectations")),
        sa.UniqueConstraint("source", "source_uid", name=op.f("uq_study_expectations_source_source_uid")),
        sa.CheckConstraint(
            "source IN ('MPPS', 'MANIFEST', 'COUNT', 'ARCHIVE', 'FILES')", name=op.f("ck_study_expectations_source")
        ),
        sa.CheckConstraint(
            "state IN ('IN PROGRESS', 'COMPLETED', 'DISCONTINUED')", name=op.f("ck_study_expectations_state")
        ),
        sa.CheckConstraint("expected_count >= 0", name=op.f("ck_study_expectations_count")),
    )
    op.create_index("ix_study_expectations_changed", "study_expectations", ["id"], postgresql_where=sa.text("changed"))
    for table, column, more in (
        ("expected_series", "series_instance_uid", (sa.Column("bare", sa.Boolean(), nullable=False),)),
        ("expected_instances", "sop_instance_uid", (sa.Column("series_instance_uid", sa.Text()),)),
    ):
        op.create_table(
            table,
            sa.Column("expectation_id", sa.BigInteger(), nullable=False),
            sa.Column(column, sa.Text(), nullable=False),
            *more,
            sa.PrimaryKeyConstraint("expectation_id", column, name=op.f(f"pk_{table}")),
            _of_expectation(table),
        )
    op.create_index("ix_expected_series_series", "expected_series", ["series_instance_uid"])
    op.create_index("ix_expected_instances_sop", "expected_instances", ["sop_instance_uid"])
    op.create_table(
        "expectation_studies",
        sa.Column("study_instance_uid", sa.Text(), nullable=False),
        sa.Column("expectation_id", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("study_instance_uid", "expectation_id", name=op.f("pk_expectation_studies")),
        _of_expectation("expectation_studies"),
    )
    op.create_index("ix_expectation_studies_expectation", "expectation_studies", ["expectation_id"])
    op.create_table(
        "study_series",
        sa.Column("destination_id", sa.BigInteger(), nullable=False),
        sa.Column("study_instance_uid", sa.Text(), nullable=False),
        sa.Column("series_instance_uid", sa.Text(), nullable=False),
        sa.Column("modality", sa.Text()),
        sa.Column("description", sa.Text()),
        sa.Column("last_instance_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
        sa.PrimaryKeyConstraint(
            "destination_id", "study_instance_uid", "series_instance_uid", name=op.f("pk_study_series")
        ),
        sa.ForeignKeyConstraint(
            ["destination_id"], [f"{_DESTINATIONS}.id"], name=op.f("fk_study_series_destination_id")
        ),
    )
    op.create_index("ix_study_series_series", "study_series", ["series_instance_uid"])


def _of_expectation(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["expectation_id"], ["study_expectations.id"], name=op.f(f"fk_{table}_expectation_id"), ondelete="CASCADE"
    )


def _check(table: str, name: str, rule: str) -> None:
    op.create_check_constraint(op.f(f"ck_{table}_{name}"), table, rule)


def _replace_waits(rule: str) -> None:
    op.drop_constraint(op.f(f"ck_{_DESTINATIONS}_waits"), _DESTINATIONS, type_="check")
    _check(_DESTINATIONS, "waits", rule)


def downgrade() -> None:
    for table in ("study_series", "expectation_studies", "expected_instances", "expected_series", "study_expectations"):
        op.drop_table(table)
    op.create_table(
        "study_expectations",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("study_instance_uid", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("source_uid", sa.Text(), nullable=False, server_default=""),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("expected_count", sa.Integer()),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_study_expectations")),
        sa.UniqueConstraint(
            "study_instance_uid",
            "source",
            "source_uid",
            name=op.f("uq_study_expectations_study_instance_uid_source_source_uid"),
        ),
        sa.CheckConstraint(
            "source IN ('MPPS', 'MANIFEST', 'COUNT', 'ARCHIVE', 'FILES')", name=op.f("ck_study_expectations_source")
        ),
        sa.CheckConstraint(
            "state IN ('IN PROGRESS', 'COMPLETED', 'DISCONTINUED')", name=op.f("ck_study_expectations_state")
        ),
        sa.CheckConstraint("expected_count >= 0", name=op.f("ck_study_expectations_count")),
    )
    op.create_table(
        "expected_instances",
        sa.Column("expectation_id", sa.BigInteger(), nullable=False),
        sa.Column("sop_instance_uid", sa.Text(), nullable=False),
        sa.Column("series_instance_uid", sa.Text()),
        sa.PrimaryKeyConstraint("expectation_id", "sop_instance_uid", name=op.f("pk_expected_instances")),
        _of_expectation("expected_instances"),
    )
    pending = sa.text("status = 'PENDING'")
    op.drop_index("ix_exam_batches_check", "exam_batches")
    op.drop_index("ix_exam_batches_ask", "exam_batches")
    op.create_index(
        "ix_exam_batches_quiet", "exam_batches", ["destination_id", "last_instance_at"], postgresql_where=pending
    )
    op.create_index(
        "ix_exam_batches_opened", "exam_batches", ["destination_id", "created_at"], postgresql_where=pending
    )
    for name in ("check_at", "ask_at", "grown"):
        op.drop_column("exam_batches", name)
    _replace_waits(_WAITS.format(series=""))
    for name in ("late_policy_after", "late_cutoff"):
        op.drop_constraint(op.f(f"ck_{_DESTINATIONS}_{name}"), _DESTINATIONS, type_="check")
    for name in ("required_series", "series_quiet_seconds", "late_cutoff_hours", "late_policy_after"):
        op.drop_column(_DESTINATIONS, name)
