"""Where batches go: settings, health (held until, back-off, failures), association limit."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, exc, text

from examsend.errors import Refused, UsageError
from examsend.outcomes import DestinationAction, Trouble, back_off
from examsend.states import LatePolicy, OnIncomplete, SenderName
from examsend.transfer import Peer, Tls, UserIdentity


@dataclass(frozen=True, slots=True)
class Destination:
    """A row of storage_backend_configs: where to, how, and how it fares. Times in seconds."""

    id: int
    name: str
    host: str
    port: int
    called_aet: str
    calling_aet: str
    sender: str
    enabled: bool
    is_default: bool
    quiet_seconds: float
    longest_wait_seconds: float
    grace_seconds: float
    on_incomplete: str
    late_policy: str
    expect_from: str | None
    association_limit: int
    associations_per_study: int
    async_window: int
    priority: int
    transcode: str
    max_attempts: int
    backoff_seconds: float
    backoff_max_seconds: float
    expire_seconds: float
    connect_timeout: float
    accept_timeout: float
    answer_timeout: float
    stall_timeout: float
    tls: bool
    tls_ca_file: str | None
    tls_cert_file: str | None
    tls_key_file: str | None
    tls_server_name: str | None
    tls_pin_sha256: str | None
    user_identity_kind: int | None
    user_identity_name: str | None
    user_identity_file: str | None
    held_until: datetime | None
    held_code: str | None
    held_reason: str | None
    consecutive_failures: int
    last_success_at: datetime | None

    def peer(self, *, async_window: int | None = None) -> Peer:
        """Return whom to dial and how."""
        tls = None
        if self.tls:
            tls = Tls(
                self.tls_ca_file, self.tls_cert_file, self.tls_key_file, self.tls_server_name, self.tls_pin_sha256
            )
        identity = None
        if self.user_identity_kind is not None:
            identity = UserIdentity(self.user_identity_kind, self.user_identity_name, self.user_identity_file)
        return Peer(
            self.host,
            self.port,
            self.called_aet,
            self.calling_aet,
            connect_timeout=self.connect_timeout,
            accept_timeout=self.accept_timeout,
            answer_timeout=self.answer_timeout,
            stall_timeout=self.stall_timeout,
            async_window=self.async_window if async_window is None else async_window,
            priority=self.priority,
            tls=tls,
            user_identity=identity,
        )


# --- settings, each with the check that says what it may be ----------------------------------------------------------


def application_entity_title(value: object) -> str:
    """Given text, return it as an AE title: 1 to 16 characters of the default repertoire without backslash and control
    characters, leading and trailing spaces not significant (PS3.5 6.2, VR AE). Raises UsageError."""
    title = str(value).strip(" ")
    if not 1 <= len(title) <= 16:
        raise UsageError(f"an AE title has 1 to 16 characters, {str(value)!r} has {len(title)}")
    if any(not 0x20 <= ord(c) <= 0x7E or c == "\\" for c in title):
        raise UsageError(f"an AE title has only ASCII characters, no backslash and no control characters: {title!r}")
    return title


_ADDRESS = re.compile(r"(?P<aet>.+)@(?:\[(?P<six>[^\]]+)\]|(?P<host>[^@:\[\]]+)):(?P<port>\d{1,5})", re.DOTALL)


def parse_address(value: str) -> dict[str, Any]:
    """Given ``AET@HOST:PORT`` (an IPv6 address in brackets), return called_aet, host and port. Raises UsageError."""
    match = _ADDRESS.fullmatch(value.strip())
    if match is None:
        raise UsageError(f"{value!r} is not AET@HOST:PORT, as in ARCHIVE@10.0.0.5:104 or ARCHIVE@[fe80::1]:104")
    host = (match["six"] or match["host"]).strip()
    if not host or any(c.isspace() or not c.isprintable() for c in host):
        raise UsageError(f"{value!r} names no host that could be looked up")
    port = int(match["port"])
    if not 1 <= port <= 65535:
        raise UsageError(f"a port is from 1 to 65535, not {port}")
    return {"called_aet": application_entity_title(match["aet"]), "host": host, "port": port}


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def check_name(value: str) -> str:
    """Given a destination's name, return it: 1 to 64 letters, digits, ``.``, ``_`` and ``-``. Raises UsageError."""
    if not _NAME.fullmatch(value):
        raise UsageError(
            f"{value!r} cannot be a destination's name: letters, digits, '.', '_' and '-', at most 64, and a letter or digit first"
        )
    return value


def _at_least(least: float, *, whole: bool = False, most: float = 1e9) -> Callable[[str, object], object]:
    def read(name: str, value: object) -> object:
        number = float(str(value))
        if not least <= number <= most or (whole and number != int(number)):
            raise UsageError(
                f"{name} must be a {'whole ' if whole else ''}number from {least:g} to {most:g}, not {value}"
            )
        return int(number) if whole else number

    return read


def _choice(*values: str) -> Callable[[str, object], object]:
    def read(name: str, value: object) -> object:
        if value not in values:
            raise UsageError(f"{name} is one of {', '.join(values)}, not {value!r}")
        return value

    return read


def _file(name: str, value: object) -> object:
    if not Path(str(value)).is_absolute():
        raise UsageError(f"{name} must be an absolute path, not {value!r}")
    return str(value)


def _pin(name: str, value: object) -> object:
    pin = str(value).replace(":", "").lower()
    if not re.fullmatch(r"[0-9a-f]{64}", pin):
        raise UsageError(f"{name} is the SHA-256 of the peer's certificate: 64 hexadecimal digits")
    return pin


def _transcode(name: str, value: object) -> object:
    if value in {"never", "fallback"} or re.fullmatch(r"always:[0-9.]{1,64}", str(value)):
        return value
    raise UsageError(f"{name} is never, fallback or always:UID, not {value!r}")


def _as_is(_name: str, value: object) -> object:
    return value


def _aet(_name: str, value: object) -> object:
    return application_entity_title(value)


_SETTINGS: dict[str, Callable[[str, object], object]] = {
    "host": _as_is,
    "port": _at_least(1, whole=True, most=65535),
    "called_aet": _aet,
    "calling_aet": _aet,
    "sender": _choice(*SenderName),
    "enabled": _as_is,
    "is_default": _as_is,
    "quiet_seconds": _at_least(0),
    "longest_wait_seconds": _at_least(0),
    "grace_seconds": _at_least(0),
    "on_incomplete": _choice(*OnIncomplete),
    "late_policy": _choice(*LatePolicy),
    "expect_from": _as_is,
    "association_limit": _at_least(1, whole=True, most=1000),
    "associations_per_study": _at_least(1, whole=True, most=64),
    "async_window": _at_least(0, whole=True, most=65535),
    "priority": _at_least(0, whole=True, most=2),
    "transcode": _transcode,
    "max_attempts": _at_least(1, whole=True, most=10000),
    "backoff_seconds": _at_least(0.01),
    "backoff_max_seconds": _at_least(0.01),
    "expire_seconds": _at_least(1),
    "connect_timeout": _at_least(0.1),
    "accept_timeout": _at_least(0.1),
    "answer_timeout": _at_least(0.1),
    "stall_timeout": _at_least(0.1),
    "tls": _as_is,
    "tls_ca_file": _file,
    "tls_cert_file": _file,
    "tls_key_file": _file,
    "tls_server_name": _as_is,
    "tls_pin_sha256": _pin,
    "user_identity_kind": _at_least(1, whole=True, most=5),
    "user_identity_name": _as_is,
    "user_identity_file": _file,
}


def check_settings(values: Mapping[str, object]) -> dict[str, object]:
    """Given settings by column name, return them checked; None is kept (not set). Raises UsageError."""
    checked: dict[str, object] = {}
    for name, value in values.items():
        check = _SETTINGS[name]
        checked[name] = None if value is None else check(name.replace("_", "-"), value)
    return checked


def _check_together(destination: Destination) -> None:
    if destination.backoff_max_seconds < destination.backoff_seconds:
        raise UsageError("backoff-max-seconds cannot be less than backoff-seconds")
    if not destination.tls and any(
        (destination.tls_ca_file, destination.tls_cert_file, destination.tls_key_file, destination.tls_pin_sha256)
    ):
        raise UsageError("certificates are given but TLS is off: add --tls")
    if (destination.tls_cert_file is None) != (destination.tls_key_file is None):
        raise UsageError("a client certificate needs its key, and a key its certificate: give both")


# --- rows -------------------------------------------------------------------------------------------------------------

_COLUMNS = ", ".join(f.name for f in fields(Destination))

_GET = text(f"SELECT {_COLUMNS} FROM storage_backend_configs WHERE name = :name AND removed_at IS NULL")
_GET_BY_ID = text(f"SELECT {_COLUMNS} FROM storage_backend_configs WHERE id = :id")
_LIST = text(f"SELECT {_COLUMNS} FROM storage_backend_configs WHERE removed_at IS NULL ORDER BY name")
_UNSENT = text(
    "SELECT count(*) FROM exam_batches WHERE destination_id = :id AND status IN ('PENDING', 'READY', 'SENDING')"
)
_FAILED = text("SELECT count(*) FROM exam_batches WHERE destination_id = :id AND status = 'FAILED'")
# What was sent stays on record, so its row stays too; a name with a space can be nobody else's.
_REMOVE = text("""
    UPDATE storage_backend_configs
    SET removed_at = clock_timestamp(), enabled = false, name = name || ' (removed ' || id || ')'
    WHERE id = :id
""")


def _destination(row: Any) -> Destination:
    return Destination(*row)


def get_destination(tx: Connection, name: str) -> Destination:
    """Given a name, return the destination. Raises UsageError where there is none."""
    row = tx.execute(_GET, {"name": name}).one_or_none()
    if row is None:
        others = [d.name for d in list_destinations(tx)]
        known = f"; there is {', '.join(others)}" if others else ": add one with `examsend destination add`"
        raise UsageError(f"no destination is called {name!r}{known}")
    return _destination(row)


def get_destination_by_id(tx: Connection, destination_id: int) -> Destination:
    """Given an id, return the destination."""
    return _destination(tx.execute(_GET_BY_ID, {"id": destination_id}).one())


def list_destinations(tx: Connection) -> list[Destination]:
    """Return every destination, by name."""
    return [_destination(row) for row in tx.execute(_LIST)]


def routed_destinations(tx: Connection, names: list[str]) -> list[Destination]:
    """Given names, return those destinations; given none, every enabled one marked default. Raises UsageError."""
    if names:
        found = [get_destination(tx, name) for name in dict.fromkeys(names)]
        disabled = [d.name for d in found if not d.enabled]
        if disabled:
            raise UsageError(f"destination {disabled[0]} is disabled: `examsend destination enable {disabled[0]}`")
        return found
    found = [d for d in list_destinations(tx) if d.enabled and d.is_default]
    if not found:
        raise UsageError(
            "there is no destination to route to: add one with `examsend destination add NAME AET@HOST:PORT`, or name one with --to"
        )
    return found


def add_destination(tx: Connection, name: str, settings: Mapping[str, object]) -> Destination:
    """Add a destination. Raises UsageError for a name that cannot be or is taken, or a setting that cannot be."""
    values = {k: v for k, v in check_settings(settings).items() if v is not None} | {"name": check_name(name)}
    columns, places = ", ".join(values), ", ".join(f":{k}" for k in values)
    try:
        with tx.begin_nested():
            tx.execute(text(f"INSERT INTO storage_backend_configs ({columns}) VALUES ({places})"), values)
    except exc.IntegrityError as error:
        if "uq_storage_backend_configs_name" not in str(error.orig):
            raise
        raise UsageError(
            f"there is a destination {name} already: `examsend destination set {name} ...` changes it"
        ) from None
    made = get_destination(tx, name)
    _check_together(made)
    return made


def change_destination(tx: Connection, name: str, settings: Mapping[str, object]) -> Destination:
    """Change settings of a destination. Raises UsageError."""
    values = check_settings(settings)
    destination = get_destination(tx, name)
    if values:
        changes = ", ".join(f"{k} = :{k}" for k in values)
        statement = text(f"UPDATE storage_backend_configs SET {changes} WHERE id = :id")
        tx.execute(statement, {**values, "id": destination.id})
    changed = get_destination(tx, name)
    _check_together(changed)
    return changed


def remove_destination(tx: Connection, name: str) -> None:
    """Remove a destination. Raises UsageError where there is none, Refused while it has unsent or failed batches."""
    destination = get_destination(tx, name)
    tx.execute(text("SELECT 1 FROM storage_backend_configs WHERE id = :id FOR UPDATE"), {"id": destination.id})
    unsent = tx.execute(_UNSENT, {"id": destination.id}).scalar_one()
    failed = tx.execute(_FAILED, {"id": destination.id}).scalar_one()
    if unsent or failed:
        what = f"{unsent} unsent" if unsent else f"{failed} failed"
        raise Refused(f"destination {name} has {what} batch{'es' if (unsent or failed) > 1 else ''}: not removed")
    tx.execute(_REMOVE, {"id": destination.id})


# --- health -----------------------------------------------------------------------------------------------------------

_HOLD = text("""
    UPDATE storage_backend_configs
    SET consecutive_failures = consecutive_failures + 1, held_code = :code, held_reason = :reason,
        held_until = clock_timestamp() + make_interval(secs => :pause)
    WHERE id = :id
""")

_FAILURES = text("SELECT consecutive_failures FROM storage_backend_configs WHERE id = :id FOR NO KEY UPDATE")

_WELL = text("""
    UPDATE storage_backend_configs
    SET consecutive_failures = 0, held_until = NULL, held_code = NULL, held_reason = NULL, last_success_at = clock_timestamp()
    WHERE id = :id
""")

_RELEASE = text("""
    UPDATE storage_backend_configs SET held_until = NULL, held_code = NULL, held_reason = NULL, consecutive_failures = 0
    WHERE id = :id AND (held_until IS NOT NULL OR consecutive_failures > 0)
""")


def hold(tx: Connection, destination: Destination, trouble: Trouble) -> None:
    """Hold a destination: for a pause that doubles with every failure in a row (BACK_OFF), or the longest one (HOLD)."""
    failures = tx.execute(_FAILURES, {"id": destination.id}).scalar_one() + 1
    jitter = random.random()  # noqa: S311 (not a secret: it keeps destinations out of step)
    longest = destination.backoff_max_seconds
    first = longest if trouble.action is DestinationAction.HOLD else destination.backoff_seconds
    pause = back_off(first, longest, failures, jitter)
    reason = trouble.reason.replace("\x00", "")[:500]
    tx.execute(_HOLD, {"id": destination.id, "code": trouble.code, "reason": reason, "pause": pause})


def record_success(tx: Connection, destination_id: int) -> None:
    """A destination has stored something: it is not held, and its failures are reset."""
    tx.execute(_WELL, {"id": destination_id})


def unhold(tx: Connection, destination_id: int) -> bool:
    """Release a held destination now; return whether it was held or had failed."""
    return tx.execute(_RELEASE, {"id": destination_id}).rowcount == 1


_STORED_SINCE = text("""
    SELECT coalesce(d.last_success_at > (SELECT max(a.started_at) FROM send_attempts a
                                         WHERE a.batch_id = :batch AND a.attempt_id <> :attempt), false)
    FROM storage_backend_configs d JOIN exam_batches b ON b.destination_id = d.id WHERE b.id = :batch
""")


def stored_since_last_attempt(tx: Connection, batch_id: int, attempt_id: UUID) -> bool:
    """Whether a batch's destination has stored anything since the batch's attempt before ``attempt_id`` began."""
    return bool(tx.execute(_STORED_SINCE, {"batch": batch_id, "attempt": attempt_id}).scalar_one())
