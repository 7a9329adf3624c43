"""Turning failures of the operating system and of PostgreSQL's programs into exceptions with one sentence."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from examsend.errors import ConfigError, DatabaseUnavailable, ExamsendError

# The machine is short of something. That passes or the administrator repairs it; no setting of examsend is wrong.
_TEMPORARY = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}

_FULL = "No space left|disk quota|wrote only [0-9]+ of [0-9]+ bytes"
_SHORT = f"{_FULL}|Cannot allocate|too many open"
"""How a program says the same."""


@contextmanager
def os_errors_as_sentences(directory: Path) -> Iterator[None]:
    """Turn an OSError inside the block into a ConfigError or DatabaseUnavailable that names ``directory``."""
    try:
        yield
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
        sentence = f"the embedded database cannot use {directory}: {what}"
        raise (DatabaseUnavailable if error.errno in _TEMPORARY else ConfigError)(sentence) from None


def program_failure(output: bytes, sentence: str, where: str = "") -> ExamsendError:
    """Return an exception that quotes the line of a program's output which explains the failure.

    ``where`` says where more can be read. It is given for a server that does not start, which is always a
    DatabaseUnavailable.
    """
    lines = [line.strip() for line in output.decode("utf-8", "replace").splitlines() if line.strip()]
    explaining = [line for line in lines if re.search("FATAL|PANIC|error|cannot|could not", line)]
    # The cause comes before its consequences: a single-user server on a full disk ends with "cannot abort transaction 1".
    short = [line for line in lines if re.search(_SHORT, line, re.IGNORECASE)]
    last = short[0] if short else (explaining or lines or ["no output"])[-1]
    quoted = re.sub(r"^.*?(FATAL|PANIC|ERROR|LOG|WARNING|error): *", "", last)[:300]
    if re.search(_FULL, last, re.IGNORECASE):
        quoted = f"its disk is full ({quoted})"
    kind = DatabaseUnavailable if short or where else ConfigError
    return kind(f"{sentence}: {quoted}{where}")
