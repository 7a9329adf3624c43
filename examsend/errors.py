"""The exceptions of examsend: each class has its exit code, each instance its sentence.

::

    ExamsendError
    ├── UsageError            2   the command was used wrongly; nothing was tried
    ├── ConfigError          78   a setting, a file of settings or the schema is not as it must be
    ├── DatabaseUnavailable  69   PostgreSQL cannot be reached now; nothing is lost, the next timer tries again
    │   └── CommitUnknown         the connection was lost after COMMIT was sent: it may have been committed, or not
    ├── Refused               1   the request is understood and would break a promise (retrying a SENT batch, ...)
    ├── LostClaim             -   another sender holds the batch: abort the association, touch nothing, leave
    ├── ForbiddenTransition   -   a batch was not in a state (or an attempt) that allows what was asked of it
    └── FileProblem           -   about one DICOM file; the pass records it and goes on
        ├── NotDicom              ignored and counted
        ├── Incomplete            provably cut short: deferred while young, then rejected
        └── Unacceptable          rejected: it cannot be identified, or no C-STORE could carry it

The text of every one of these is shown to people as it is: one sentence, no traceback, no patient data, no secret.
"""

from __future__ import annotations


class ExamsendError(Exception):
    """Base of everything examsend raises on purpose."""

    exit_code = 70


class UsageError(ExamsendError):
    """Wrong usage of a command."""

    exit_code = 2


class ConfigError(ExamsendError):
    """The configuration, or the database's schema, is not as it must be."""

    exit_code = 78


class DatabaseUnavailable(ExamsendError):
    """PostgreSQL cannot be reached now."""

    exit_code = 69


class CommitUnknown(DatabaseUnavailable):
    """The connection was lost after COMMIT was sent: the transaction may have been committed, or not."""


class Refused(ExamsendError):
    """Understood, and refused: it would break a promise."""

    exit_code = 1


class LostClaim(ExamsendError):
    """This sender's attempt no longer owns the batch (its lease ran out and another took over)."""


class ForbiddenTransition(ExamsendError):
    """The batch is not in a state that allows the transition; its row was left untouched."""


class FileProblem(ExamsendError):
    """One file cannot be registered. ``code`` is a short constant for machines, the text is for people."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class NotDicom(FileProblem):
    """Not a DICOM instance: text, a DICOMDIR, another format. Ignored and counted."""


class Incomplete(FileProblem):
    """Provably cut short: a declared length does not fit, or a delimiter is missing."""


class Unacceptable(FileProblem):
    """A DICOM file that cannot be delivered as an instance of a study."""
