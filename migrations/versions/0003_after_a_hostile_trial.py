"""what a hostile trial asked for

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_STORED_WITH_TWO_CONTENTS = """
    UPDATE exam_batch_instances i SET other_content_possible = true
    FROM (SELECT destination_id, sop_instance_uid FROM exam_batch_instances
          GROUP BY destination_id, sop_instance_uid HAVING count(DISTINCT content_sha256) > 1) v
    WHERE i.destination_id = v.destination_id AND i.sop_instance_uid = v.sop_instance_uid AND i.outcome = 'STORED'
      AND EXISTS (SELECT 1 FROM exam_batch_instances o
                  WHERE o.destination_id = i.destination_id AND o.sop_instance_uid = i.sop_instance_uid
                    AND o.batch_id <> i.batch_id AND o.content_sha256 IS DISTINCT FROM i.content_sha256
                    AND (o.outcome = 'STORED' OR EXISTS (SELECT 1 FROM send_attempts a WHERE a.batch_id = o.batch_id
                                                         AND (a.established OR a.result IN ('RUNNING', 'LEASE_LOST')))))
"""


_BIGINT, _TEXT = sa.BigInteger(), sa.Text()

_FILES = {
    "exam_batch_instances": {"file_inode": _BIGINT, "file_ctime_ns": _BIGINT},
    "exam_batch_instance_aliases": {
        "file_inode": _BIGINT,
        "file_ctime_ns": _BIGINT,
        "mount_point": _TEXT,
        "dataset_offset": _BIGINT,
        "transfer_syntax_uid": _TEXT,
    },
    "rejected_files": {"file_inode": _BIGINT, "file_ctime_ns": _BIGINT},
}
"""What is remembered of a file, besides its size and modification time."""

_OVERWRITTEN = """
    UPDATE exam_batch_instances o SET file_ctime_ns = -9223372036854775808
    FROM exam_batch_instances n
    WHERE n.processed_filepath = o.processed_filepath AND n.destination_id = o.destination_id AND n.id > o.id
      AND n.content_sha256 <> o.content_sha256
"""

_ANOTHER_VERSION = """
    UPDATE exam_batch_instances n SET another_version = true
    FROM exam_batch_instances o
    WHERE o.destination_id = n.destination_id AND o.sop_instance_uid = n.sop_instance_uid AND o.id < n.id
      AND o.content_sha256 <> n.content_sha256
"""


def upgrade() -> None:
    # An ingest that has seen the study of a PENDING batch runs.
    op.add_column("exam_batches", sa.Column("ingesting_until", sa.DateTime(timezone=True)))
    for table, columns in _FILES.items():
        for name, kind in columns.items():
            op.add_column(table, sa.Column(name, kind))
    op.add_column(
        "exam_batch_instances",
        sa.Column("another_version", sa.Boolean(), nullable=False, server_default=sa.text("false")),
    )
    op.execute(_OVERWRITTEN)
    op.execute(_ANOTHER_VERSION)
    op.create_index(
        "ix_exam_batch_instances_versions",
        "exam_batch_instances",
        ["destination_id", "sop_instance_uid"],
        postgresql_where=sa.text("another_version"),
    )
    op.add_column(
        "exam_batch_instances", sa.Column("strikes", sa.Integer(), server_default=sa.text("0"), nullable=False)
    )

    # Whether the archive may hold other content than this under the SOP Instance UID.
    op.add_column(
        "exam_batch_instances",
        sa.Column("other_content_possible", sa.Boolean(), nullable=False, server_default=sa.text("false")),
    )
    op.execute(_STORED_WITH_TWO_CONTENTS)


def downgrade() -> None:
    op.drop_column("exam_batches", "ingesting_until")
    op.drop_column("exam_batch_instances", "other_content_possible")
    op.drop_column("exam_batch_instances", "another_version")
    for table, columns in _FILES.items():
        for name in columns:
            op.drop_column(table, name)
    op.drop_column("exam_batch_instances", "strikes")
