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


def upgrade() -> None:
    # An ingest that has seen the study of a PENDING batch runs.
    op.add_column("exam_batches", sa.Column("ingesting_until", sa.DateTime(timezone=True)))


def downgrade() -> None:
    op.drop_column("exam_batches", "ingesting_until")
