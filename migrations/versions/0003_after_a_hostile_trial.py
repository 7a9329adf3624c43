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


def upgrade() -> None:
    # Whether the archive may hold other content than this under the SOP Instance UID.
    op.add_column(
        "exam_batch_instances",
        sa.Column("other_content_possible", sa.Boolean(), nullable=False, server_default=sa.text("false")),
    )
    op.execute(_STORED_WITH_TWO_CONTENTS)


def downgrade() -> None:
    op.drop_column("exam_batch_instances", "other_content_possible")
