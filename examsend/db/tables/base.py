"""What the models share."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import BigInteger, Boolean, DateTime, LargeBinary, MetaData, Text, Uuid, text
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.types import Double

from examsend.states import sql_list


def one_of(column: str, values: type[StrEnum]) -> str:
    """Return the CHECK by which a column holds a member of an enumeration."""
    return f"{column} IN ({sql_list(values)})"


def _names(convention_of: str) -> str:
    return {"ix": "ix_%(column_0_label)s", "uq": "uq_%(table_name)s_%(column_0_N_name)s"}[convention_of]


class Base(DeclarativeBase):
    """The base class. Every constraint has a name, so that an error of PostgreSQL identifies it."""

    metadata = MetaData(
        naming_convention={
            "ix": _names("ix"),
            "uq": _names("uq"),
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 (declarative's own hook)
        int: BigInteger,
        str: Text,
        bool: Boolean,
        float: Double,
        bytes: LargeBinary,
        datetime: DateTime(timezone=True),
        UUID: Uuid,
    }


NOW = text("clock_timestamp()")
"""The time of the statement, by the database's clock."""
