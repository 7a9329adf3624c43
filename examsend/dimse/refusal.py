"""Statuses of PS3.7 annex C with which a request is refused, and the exception that asks for one."""

from __future__ import annotations

from examsend.dicom.elements import name
from examsend.dimse.inbound import Reply

INVALID_VALUE, PROCESSING_FAILURE = 0x0106, 0x0110
NO_SUCH_EVENT, INVALID_ARGUMENT, NO_SUCH_CLASS = 0x0113, 0x0115, 0x0118
MISSING, EMPTY, NOT_AUTHORIZED = 0x0120, 0x0121, 0x0124
UNRECOGNIZED_OPERATION, RESOURCE_LIMITATION = 0x0211, 0x0213


class Wrong(Exception):
    """The data set cannot be accepted. ``status`` and ``tag`` go into the response; ``tag`` is None for the whole data set."""

    def __init__(self, status: int, tag: int | None, comment: str) -> None:
        super().__init__(comment)
        self.status = status
        self.tag = tag
        self.comment = comment
        """At most 64 characters, and nothing of a value."""


def missing(tag: int) -> Wrong:
    """The refusal of a data set in which an attribute is missing."""
    return Wrong(MISSING, tag, f"{name(tag)} is missing")


def empty(tag: int) -> Wrong:
    """The refusal of a data set in which an attribute has no value."""
    return Wrong(EMPTY, tag, f"{name(tag)} is empty")


def without_operation() -> Reply:
    """The answer to a command that a service does not have (PS3.7 C.5.23)."""
    return Reply(UNRECOGNIZED_OPERATION, error_comment="this operation is not supported")


def of_another_class() -> Reply:
    """The answer to a request about another SOP Class than that of its presentation context."""
    return Reply(NO_SUCH_CLASS, error_comment="not the SOP Class of the presentation context")
