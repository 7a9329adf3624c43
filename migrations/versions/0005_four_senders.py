"""four senders: dcm4che and DCMTK, a second sender, conversion, names in certificates

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_DESTINATIONS = "storage_backend_configs"

_SENDERS = "('native', 'pynetdicom', 'dcm4che', 'dcmtk')"

_TRANSCODE = (
    "'never', 'fallback', 'always:1.2.840.10008.1.2', 'always:1.2.840.10008.1.2.1', 'always:1.2.840.10008.1.2.1.99',"
    " 'always:1.2.840.10008.1.2.5', 'always:1.2.840.10008.1.2.4.80', 'always:1.2.840.10008.1.2.4.90'"
)


def upgrade() -> None:
    op.add_column(_DESTINATIONS, sa.Column("fallback_sender", sa.Text()))
    op.add_column(_DESTINATIONS, sa.Column("fallback_after", sa.Integer(), nullable=False, server_default=sa.text("3")))
    op.add_column(
        _DESTINATIONS, sa.Column("tls_check_name", sa.Boolean(), nullable=False, server_default=sa.text("true"))
    )
    _drop_check("sender")
    _check("sender", f"sender IN {_SENDERS}")
    _check("fallback_sender", f"fallback_sender IN {_SENDERS}")
    _check("other_sender", "fallback_sender <> sender")
    _check("fallback_after", "fallback_after BETWEEN 1 AND 1000")
    # Nothing has used the column so far.
    op.execute(f"UPDATE {_DESTINATIONS} SET transcode = 'never' WHERE transcode NOT IN ({_TRANSCODE})")
    _check("transcode", f"transcode IN ({_TRANSCODE})")


def downgrade() -> None:
    for name in ("transcode", "fallback_after", "other_sender", "fallback_sender", "sender"):
        _drop_check(name)
    op.execute(f"UPDATE {_DESTINATIONS} SET sender = 'native' WHERE sender IN ('dcm4che', 'dcmtk')")
    _check("sender", "sender IN ('native', 'pynetdicom')")
    for name in ("tls_check_name", "fallback_after", "fallback_sender"):
        op.drop_column(_DESTINATIONS, name)


def _check(name: str, rule: str) -> None:
    op.create_check_constraint(op.f(f"ck_{_DESTINATIONS}_{name}"), _DESTINATIONS, rule)


def _drop_check(name: str) -> None:
    op.drop_constraint(op.f(f"ck_{_DESTINATIONS}_{name}"), _DESTINATIONS, type_="check")
