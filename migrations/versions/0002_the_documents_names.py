"""the document's names: processed_filepath and updated_at; facts of a file that are read later; bytes

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_FACTS = (
    "series_instance_uid",
    "sop_class_uid",
    "transfer_syntax_uid",
    "file_size",
    "file_mtime_ns",
    "dataset_offset",
    "content_sha256",
)

_TOUCH = """
    CREATE FUNCTION exam_batches_touch() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.updated_at := clock_timestamp();
        RETURN NEW;
    END $$
"""


def upgrade() -> None:
    op.alter_column("exam_batch_instances", "file_path", new_column_name="processed_filepath")
    for fact in _FACTS:
        op.alter_column("exam_batch_instances", fact, nullable=True)
    op.create_check_constraint(
        op.f("ck_exam_batch_instances_identified"),
        "exam_batch_instances",
        f"num_nulls({', '.join(_FACTS)}) IN (0, {len(_FACTS)})",
    )

    # A database that the project's first document describes has this column already.
    op.execute("ALTER TABLE exam_batches ADD COLUMN IF NOT EXISTS updated_at timestamptz")
    op.execute("ALTER TABLE exam_batches ALTER COLUMN updated_at TYPE timestamptz")
    op.execute("UPDATE exam_batches SET updated_at = coalesce(finished_at, last_instance_at) WHERE updated_at IS NULL")
    op.alter_column("exam_batches", "updated_at", server_default=sa.text("clock_timestamp()"), nullable=False)
    op.execute(_TOUCH)
    op.execute(
        "CREATE TRIGGER exam_batches_touch BEFORE UPDATE ON exam_batches"
        " FOR EACH ROW EXECUTE FUNCTION exam_batches_touch()"
    )

    op.alter_column("send_attempts", "octets", new_column_name="bytes_sent")

    op.drop_constraint(op.f("ck_storage_backend_configs_sender"), "storage_backend_configs", type_="check")
    op.create_check_constraint(
        op.f("ck_storage_backend_configs_sender"), "storage_backend_configs", "sender IN ('native', 'pynetdicom')"
    )
    op.alter_column("storage_backend_configs", "sender", server_default="native")
    for column in ("priority", "user_identity_kind"):
        op.alter_column("storage_backend_configs", column, type_=sa.Integer())


def downgrade() -> None:
    for column in ("priority", "user_identity_kind"):
        op.alter_column("storage_backend_configs", column, type_=sa.SmallInteger())
    op.alter_column("storage_backend_configs", "sender", server_default=None)
    op.drop_constraint(op.f("ck_storage_backend_configs_sender"), "storage_backend_configs", type_="check")
    op.create_check_constraint(
        op.f("ck_storage_backend_configs_sender"),
        "storage_backend_configs",
        "sender IN ('native', 'pynetdicom', 'dcm4che', 'dcmtk')",
    )
    op.alter_column("send_attempts", "bytes_sent", new_column_name="octets")
    op.execute("DROP TRIGGER exam_batches_touch ON exam_batches")
    op.execute("DROP FUNCTION exam_batches_touch()")
    op.drop_column("exam_batches", "updated_at")
    op.drop_constraint(op.f("ck_exam_batch_instances_identified"), "exam_batch_instances", type_="check")
    # Instances whose file has never been read have no place in the older schema.
    op.execute("DELETE FROM exam_batch_instances WHERE content_sha256 IS NULL")
    for fact in _FACTS:
        op.alter_column("exam_batch_instances", fact, nullable=False)
    op.alter_column("exam_batch_instances", "processed_filepath", new_column_name="file_path")
