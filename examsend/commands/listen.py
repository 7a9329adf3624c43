"""Listen on a port for what modalities and archives send: performed procedure steps (MPPS), reports of Storage Commitment, and
Verification."""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass

from examsend.config.settings import Settings
from examsend.dimse import tls
from examsend.dimse.acceptor import Limits
from examsend.errors import ConfigError, UsageError
from examsend.queue import commitment
from examsend.services.admission import Admission, Titles
from examsend.services.commitment import CommitmentReports
from examsend.services.lasting import LastingDatabase
from examsend.services.mpps import PerformedSteps
from examsend.services.port import Port
from examsend.services.sockets import handed_over, listening_on
from examsend.services.verification import Verification

log = logging.getLogger("examsend.listen")


@dataclass(frozen=True, slots=True)
class ListenResult:
    """The result of ``listen``."""

    associations: int
    """Associations that were accepted."""
    rejected: int
    """Connections that were closed at once, and associations that were rejected."""
    messages: int
    """Requests that were answered."""
    failures: int
    """Those that were answered with a failure status."""
    seconds: float
    interrupted: bool = False
    """It was ended by SIGINT."""

    @property
    def exit_code(self) -> int:
        """The exit code of the command."""
        return 130 if self.interrupted else 0


def run(
    settings: Settings,
    *,
    port: int | None = None,
    bind: str | None = None,
    idle: float | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> ListenResult:
    """Accept associations until ``stop()`` returns True, or nobody has had one for a time.

    Sockets that systemd has handed over are used, else ``port`` is opened (0: a free one), at the address ``bind`` (None: all).
    ``idle``: end after this many seconds without an association, 0: never; None: the setting ``listen_idle`` with sockets that
    were handed over, else never.

    A database that is away, or without its schema, does not end it: its messages are answered with a failure status.

    Raises UsageError where there is nothing to listen on, ConfigError for settings that cannot be used.
    """
    began = time.monotonic()
    listeners = handed_over(os.environ)
    activated = bool(listeners)
    if activated and (port is not None or bind is not None):
        raise UsageError("sockets were handed over to this process: --port and --bind cannot be used with them")
    _check_tls(settings)
    if not activated:
        if port is None:
            raise UsageError("there is nothing to listen on: give --port, or let systemd start it by its socket unit")
        _secure(settings)  # what is wrong with the files is said before anybody connects
        listeners = [listening_on(port, bind)]
    if idle is None:
        idle = settings.listen_idle if activated else 0.0
    database = LastingDatabase(settings)
    admission = Admission(
        [Verification(), PerformedSteps(database), CommitmentReports(database, commitment.take_report)],
        Titles(settings.listen_aet, database),
        settings.listen_allow_aets,
        settings.listen_allow_peers,
    )
    served = Port(
        listeners,
        admission,
        most=settings.listen_associations,
        limits=Limits(),
        secure=lambda: _secure(settings),
    )
    for listener in listeners:
        host, number = listener.getsockname()[:2]
        log.info("listening as %s on %s, port %d", settings.listen_aet, host, number)
    try:
        served.run(stop, idle)
    finally:
        database.close()
        for listener in listeners:
            # Others may hold a socket that was handed over: it is closed, never shut down.
            listener.close()
    counts = served.counts
    return ListenResult(
        counts.associations, counts.rejected, counts.messages, counts.failures, time.monotonic() - began
    )


def _check_tls(settings: Settings) -> None:
    """Raise ConfigError where the TLS settings do not go together."""
    certificate, key = settings.listen_tls_cert_file, settings.listen_tls_key_file
    if (certificate is None) != (key is None):
        raise ConfigError("listen_tls_cert_file and listen_tls_key_file belong together: one of them is not set")
    if settings.listen_tls_ca_file is not None and certificate is None:
        raise ConfigError("listen_tls_ca_file needs listen_tls_cert_file and listen_tls_key_file")


def _secure(settings: Settings) -> ssl.SSLContext | None:
    """Return the TLS context for a connection; None: without TLS. Raises ConfigError where a file cannot be used."""
    certificate, key = settings.listen_tls_cert_file, settings.listen_tls_key_file
    if certificate is None or key is None:
        return None
    return tls.server_context(certificate, key, settings.listen_tls_ca_file)
