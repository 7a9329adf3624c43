"""The exceptions of examsend. Each class has an exit code, each instance one sentence as its message.

::

    ExamsendError
    ├── UsageError            2   the command was used wrongly; nothing was changed
    ├── ConfigError          78   a setting, the settings file or the database's schema is wrong
    │   ├── NoDatabase            a command that only reads found no database, and makes none
    │   └── DatabaseRefuses       PostgreSQL refuses the user, the password, or what the command needs of it
    ├── DatabaseUnavailable  69   PostgreSQL cannot be reached now; nothing is lost, the next run tries again
    │   └── CommitUnknown         the connection was lost after COMMIT was sent: it is unknown whether it was committed
    ├── Refused               1   the request is valid, but the state does not allow it (retrying a SENT batch, ...)
    ├── LostClaim             -   another sender has claimed the batch: abort the association and write nothing
    ├── ForbiddenTransition   -   the batch is not in a state that allows the transition
    └── FileProblem           -   about one DICOM file; the pass records it and continues
        ├── NotDicom              ignored and counted
        ├── Incomplete            truncated: deferred while the file is new, then rejected
        └── Unacceptable          rejected: it cannot be identified, or it cannot be sent by C-STORE

Messages are shown to users unchanged: one sentence, no traceback, no patient data, no secret.
"""

from __future__ import annotations

TRACEBACKS = 9
"""The level of logging at which tracebacks are shown: below ``logging.DEBUG``, set by -vv."""


class ExamsendError(Exception):
    """Base class of the exceptions that examsend raises."""

    exit_code = 70
    code: str = "BUG"
    """A short constant for programs: ``--json`` shows it beside the sentence."""


class UsageError(ExamsendError):
    """Wrong usage of a command."""

    exit_code = 2
    code = "USAGE"


class ConfigError(ExamsendError):
    """The configuration or the database's schema is wrong."""

    exit_code = 78
    code = "CONFIGURATION"


class NoDatabase(ConfigError):
    """No setting names a database, there is no embedded one yet, and a command that only reads makes none."""

    code = "NO_DATABASE"


class DatabaseRefuses(ConfigError):
    """PostgreSQL refuses the user, the password, or what the command needs of it. Waiting does not help."""

    code = "DATABASE_REFUSES"


class DatabaseUnavailable(ExamsendError):
    """PostgreSQL cannot be reached now."""

    exit_code = 69
    code = "DATABASE_UNAVAILABLE"


class CommitUnknown(DatabaseUnavailable):
    """The connection was lost after COMMIT was sent: it is unknown whether the transaction was committed."""

    code = "COMMIT_UNKNOWN"


class Refused(ExamsendError):
    """The request is valid, but the present state does not allow it."""

    exit_code = 1
    code = "REFUSED"


class Interrupted(ExamsendError):
    """A user or a service manager asked the command to end. The message says what was done."""

    code = "INTERRUPTED"

    def __init__(self, exit_code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


class LostClaim(ExamsendError):
    """This sender's attempt no longer owns the batch: its lease expired, and another sender claimed the batch."""


class ForbiddenTransition(ExamsendError):
    """The batch is not in a state that allows the transition. Its row was not changed."""


class FileProblem(ExamsendError):
    """One file cannot be registered. ``code`` is a short constant for programs, the message a sentence for users."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.study_instance_uid: str | None = None
        self.sop_instance_uid: str | None = None
        """What the file says of itself, as far as it could be read."""


class NotDicom(FileProblem):
    """Not a DICOM instance: a text file, a DICOMDIR, another format. Ignored and counted."""


class Incomplete(FileProblem):
    """The file is truncated: a declared length exceeds the file, or a delimiter is missing."""


class Unacceptable(FileProblem):
    """The file is DICOM, but it cannot be delivered as an instance of a study."""
