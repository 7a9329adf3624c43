"""the digest of a data set is BLAKE3

The digests of before are SHA-256, and nothing made now can be compared with them. They are emptied: a file that is not sent yet is
read again before it is sent, any other when an ingest meets it.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_INSTANCES = "exam_batch_instances"
_READ = "series_instance_uid, sop_class_uid, transfer_syntax_uid, file_size, file_mtime_ns, dataset_offset"


def upgrade() -> None:
    _drop_checks("sha256")
    op.alter_column(_INSTANCES, "content_sha256", new_column_name="content_digest")
    op.execute(f"UPDATE {_INSTANCES} SET content_digest = NULL WHERE content_digest IS NOT NULL")
    op.create_check_constraint(op.f(f"ck_{_INSTANCES}_digest"), _INSTANCES, "octet_length(content_digest) = 32")
    op.create_check_constraint(
        op.f(f"ck_{_INSTANCES}_identified"),
        _INSTANCES,
        f"num_nulls({_READ}) IN (0, 6) AND (content_digest IS NULL OR series_instance_uid IS NOT NULL)",
    )
    # What a removal says of a file that is gone stays as it is: those of before are SHA-256.
    op.alter_column("source_removals", "content_sha256", new_column_name="content_digest")


def downgrade() -> None:
    op.alter_column("source_removals", "content_digest", new_column_name="content_sha256")
    _drop_checks("digest")
    # No digest fits any more. A file that is to be sent is then CHANGED, which the next ingest mends.
    op.execute(
        f"UPDATE {_INSTANCES} SET content_digest = decode(repeat('00', 32), 'hex')"
        " WHERE content_digest IS NULL AND series_instance_uid IS NOT NULL"
    )
    op.alter_column(_INSTANCES, "content_digest", new_column_name="content_sha256")
    op.create_check_constraint(op.f(f"ck_{_INSTANCES}_sha256"), _INSTANCES, "octet_length(content_sha256) = 32")
    op.create_check_constraint(
        op.f(f"ck_{_INSTANCES}_identified"), _INSTANCES, f"num_nulls({_READ}, content_sha256) IN (0, 7)"
    )


def _drop_checks(digest: str) -> None:
    for name in (digest, "identified"):
        op.drop_constraint(op.f(f"ck_{_INSTANCES}_{name}"), _INSTANCES, type_="check")
