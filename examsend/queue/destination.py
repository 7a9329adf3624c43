"""Destinations: their settings, their health (held until, consecutive failures, last success), and which have something due."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, exc, text

from examsend.config import files
from examsend.config.destination import (
    LONGEST_TIMEOUT,
    DestinationSettings,
    address,
    check_name,
    check_settings,
)
from examsend.config.together import check_together
from examsend.db import due
from examsend.db.prepared import repeated
from examsend.errors import Refused, UsageError
from examsend.outcomes import OwnStatuses
from examsend.states import NOT_COUNTED, BatchState, Confirm, OnDisputed, SenderName, Transcode, sql_list
from examsend.transfer import Peer, Tls, UserIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination(DestinationSettings):
    """A row of storage_backend_configs: settings and health of a destination."""

    id: int
    name: str
    held_until: datetime | None
    held_code: str | None
    held_reason: str | None
    consecutive_failures: int
    last_success_at: datetime | None
    down_since: datetime | None

    @property
    def senders(self) -> tuple[SenderName, ...]:
        """Its sender, and its second one where there is one."""
        return (self.sender,) if self.fallback_sender is None else (self.sender, self.fallback_sender)

    @property
    def own_statuses(self) -> OwnStatuses:
        """The statuses that mean something else here than in the standard's table."""
        return OwnStatuses.of(self.accept_status, self.fail_status)

    def peer(self, *, async_window: int | None = None) -> Peer:
        """Return the destination as the peer of a sender. ``async_window``: None is the destination's own setting."""
        tls = None
        if self.tls:
            tls = Tls(
                files.located(self.tls_ca_file),
                files.located(self.tls_cert_file),
                files.located(self.tls_key_file),
                self.tls_server_name,
                self.tls_pin_sha256,
                self.tls_check_name,
            )
        identity = None
        if self.user_identity_kind is not None:
            identity = UserIdentity(
                self.user_identity_kind, self.user_identity_name, files.located(self.user_identity_file)
            )
        return Peer(
            self.host,
            self.port,
            self.called_aet,
            self.calling_aet,
            # A row may hold more than can be set: it was written by hand, or by an earlier version.
            connect_timeout=min(LONGEST_TIMEOUT, self.connect_timeout),
            accept_timeout=min(LONGEST_TIMEOUT, self.accept_timeout),
            answer_timeout=min(LONGEST_TIMEOUT, self.answer_timeout),
            stall_timeout=min(LONGEST_TIMEOUT, self.stall_timeout),
            async_window=self.async_window if async_window is None else async_window,
            priority=self.priority,
            tls=tls,
            user_identity=identity,
            transcode=self.transcode,
        )


# --- rows -------------------------------------------------------------------------------------------------------------

_NAMES = [f.name for f in fields(Destination)]
_COLUMNS = ", ".join(_NAMES)

_GET = text(f"SELECT {_COLUMNS} FROM storage_backend_configs WHERE name = :name AND removed_at IS NULL")
_GET_BY_ID = text(f"SELECT {_COLUMNS} FROM storage_backend_configs WHERE id = :id")
_LOCK_TO_SEND = repeated(
    f"SELECT {_COLUMNS} FROM storage_backend_configs d WHERE d.id = :id AND {due.SENDABLE} FOR NO KEY UPDATE"
)
_LIST = text(f"SELECT {_COLUMNS} FROM storage_backend_configs WHERE removed_at IS NULL ORDER BY name")
_UNSENT_STATES = (BatchState.PENDING, BatchState.READY, BatchState.SENDING)

_UNSENT = text(
    f"SELECT count(*) FROM exam_batches WHERE destination_id = :id AND status IN ({sql_list(_UNSENT_STATES)})"
)
# A PENDING batch of which nothing is to be delivered is a record: the late policy is never.
_RECORDS = text(f"""
    SELECT count(*) FROM exam_batches b WHERE b.destination_id = :id AND b.status = '{BatchState.PENDING}' AND NOT EXISTS (
        SELECT 1 FROM exam_batch_instances i WHERE i.batch_id = b.id AND i.outcome NOT IN ({sql_list(NOT_COUNTED)}))
""")
_FAILED = text(f"SELECT count(*) FROM exam_batches WHERE destination_id = :id AND status = '{BatchState.FAILED}'")
# The row is kept, because batches and attempts refer to it. It is renamed, so that its name can be used again: a valid name
# contains no space.
_REMOVE = text("""
    UPDATE storage_backend_configs
    SET removed_at = clock_timestamp(), enabled = false, name = name || ' (removed ' || id || ')'
    WHERE id = :id
""")


def _destination(row: Any) -> Destination:
    values = dict(zip(_NAMES, row, strict=True))
    second = values["fallback_sender"]
    return Destination(
        **{
            **values,
            "sender": SenderName(values["sender"]),
            "fallback_sender": None if second is None else SenderName(second),
            "transcode": Transcode(values["transcode"]),
            "confirm": Confirm(values["confirm"]),
            "on_disputed": OnDisputed(values["on_disputed"]),
        }
    )


def get_destination(tx: Connection, name: str) -> Destination:
    """Given a name, return the destination. Raises UsageError if there is none."""
    row = tx.execute(_GET, {"name": name}).one_or_none()
    if row is None:
        others = [d.name for d in list_destinations(tx)]
        known = f"; there is {', '.join(others)}" if others else ": add one with `examsend destination add`"
        raise UsageError(f"no destination is called {name!r}{known}")
    return _destination(row)


def get_destination_by_id(tx: Connection, destination_id: int) -> Destination:
    """Given an id, return the destination."""
    return _destination(tx.execute(_GET_BY_ID, {"id": destination_id}).one())


def lock_to_send(tx: Connection, destination_id: int) -> Destination | None:
    """Lock a destination's row until the end of the transaction, and return the destination; None if nothing may be sent to it:
    it is held, disabled or removed. Claims of its batches wait for each other here."""
    row = tx.execute(_LOCK_TO_SEND, {"id": destination_id}).one_or_none()
    return None if row is None else _destination(row)


def list_destinations(tx: Connection) -> list[Destination]:
    """Return every destination, ordered by name."""
    return [_destination(row) for row in tx.execute(_LIST)]


# FOR KEY SHARE waits for ``remove``, and ``remove`` for it. Nothing else does: a sender changes only columns that are no key.
_KEEP = text("""
    SELECT id FROM storage_backend_configs WHERE id = ANY(CAST(:ids AS bigint[])) AND removed_at IS NULL
    ORDER BY id FOR KEY SHARE
""")


def keep_destinations(tx: Connection, ids: Iterable[int]) -> list[int]:
    """Return those of the destinations that are not removed. They cannot be removed until the end of the transaction; then
    they have the batches that it adds."""
    return list(tx.scalars(_KEEP, {"ids": list(ids)}))


def routed_destinations(tx: Connection, names: list[str]) -> list[Destination]:
    """Given names, return these destinations; given none, every enabled default destination. Raises UsageError."""
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


def resemblance(one: Destination, other: Destination) -> list[str]:
    """Return why two destinations may be the same one, as sentences about ``one``; none if they differ."""
    found = []
    same = one.called_aet == other.called_aet and one.port == other.port
    if same and one.host.rstrip(".").lower() == other.host.rstrip(".").lower():
        where = address(one.called_aet, one.host, one.port)
        found.append(f"{other.name} has the same address ({where}): a study that goes to both is sent there twice")
    if one.name.casefold() == other.name.casefold():
        found.append(f"its name differs from that of {other.name} in upper and lower case only")
    return found


def add_destination(tx: Connection, name: str, settings: Mapping[str, object]) -> Destination:
    """Add a destination. Raises UsageError if the name is invalid or taken, or a setting is invalid."""
    values = {k: v for k, v in check_settings(settings).items() if v is not None}
    check_together(DestinationSettings(**values))
    values["name"] = check_name(name)
    columns, places = ", ".join(values), ", ".join(f":{k}" for k in values)
    try:
        with tx.begin_nested():
            tx.execute(text(f"INSERT INTO storage_backend_configs ({columns}) VALUES ({places})"), values)
    except exc.IntegrityError as error:
        if "uq_storage_backend_configs_name" not in str(error.orig):
            raise _refused(error) from None
        raise UsageError(
            f"there is a destination {name} already: `examsend destination set {name} ...` changes it"
        ) from None
    return get_destination(tx, name)


# An archive that was not asked yet may say of a study what the one before did not.
_ASK_AGAIN = text("""
    UPDATE exam_batches SET ask_at = clock_timestamp()
    WHERE id IN (SELECT b.id FROM exam_batches b WHERE b.destination_id = :id AND b.status = 'PENDING'
                 ORDER BY b.id FOR NO KEY UPDATE)
""")

# When a study is complete may depend on any setting, and a batch is looked at only when something was to happen.
_LOOK_AGAIN = text("""
    UPDATE exam_batches SET check_at = clock_timestamp()
    WHERE id IN (SELECT b.id FROM exam_batches b WHERE b.destination_id = :id AND b.status = 'PENDING'
                 ORDER BY b.id FOR NO KEY UPDATE)
""")


def change_destination(tx: Connection, name: str, settings: Mapping[str, object]) -> Destination:
    """Change settings of a destination; finalize looks at its PENDING batches again. Raises UsageError."""
    values = check_settings(settings)
    changed = replace(get_destination(tx, name), **values)
    check_together(changed)
    if values:
        changes = ", ".join(f"{k} = :{k}" for k in values)
        try:
            with tx.begin_nested():
                tx.execute(
                    text(f"UPDATE storage_backend_configs SET {changes} WHERE id = :id"), values | {"id": changed.id}
                )
        except exc.IntegrityError as error:
            raise _refused(error) from None
        tx.execute(_LOOK_AGAIN, {"id": changed.id})
        if "expect_from" in values:
            tx.execute(_ASK_AGAIN, {"id": changed.id})
    return changed


def _refused(error: exc.IntegrityError) -> UsageError:
    """Given the database's refusal of a row, return it as wrong usage: a constraint knows better than the checks above."""
    rule = getattr(getattr(error.orig, "diag", None), "constraint_name", None) or "of its own"
    return UsageError(f"the database refuses these settings by its rule {rule}")


# A reason without a hold is why the destination is disabled: it has no address yet (migration 0001).
_ENABLE = text("""
    UPDATE storage_backend_configs
    SET enabled = :enabled,
        held_code = CASE WHEN held_until IS NULL AND :enabled THEN NULL ELSE held_code END,
        held_reason = CASE WHEN held_until IS NULL AND :enabled THEN NULL ELSE held_reason END
    WHERE id = :id
""")


def enable_destination(tx: Connection, name: str, *, enabled: bool) -> int:
    """Enable or disable a destination; return its id. A hold goes on. Raises UsageError."""
    destination = get_destination(tx, name)
    tx.execute(_ENABLE, {"id": destination.id, "enabled": enabled})
    return destination.id


def remove_destination(tx: Connection, name: str) -> int:
    """Remove a destination; return its id. Raises UsageError if there is none, Refused if it has unsent or FAILED batches."""
    destination = get_destination(tx, name)
    tx.execute(text("SELECT 1 FROM storage_backend_configs WHERE id = :id FOR UPDATE"), {"id": destination.id})
    unsent = tx.execute(_UNSENT, {"id": destination.id}).scalar_one()
    if unsent:
        unsent -= tx.execute(_RECORDS, {"id": destination.id}).scalar_one()
    failed = tx.execute(_FAILED, {"id": destination.id}).scalar_one()
    if unsent or failed:
        what = f"{unsent} unsent" if unsent else f"{failed} failed"
        raise Refused(f"destination {name} has {what} batch{'es' if (unsent or failed) > 1 else ''}: not removed")
    tx.execute(_REMOVE, {"id": destination.id})
    return destination.id


# --- what is due ------------------------------------------------------------------------------------------------------

_DUE_DESTINATIONS = repeated(f"""
    SELECT due.id, due.at_once FROM (
        SELECT d.id, CASE WHEN d.consecutive_failures > 0 THEN 1
                     ELSE greatest(d.association_limit / d.associations_per_study, 1) END AS at_once,
               least({due.NEXT_ATTEMPT}, {due.NEXT_LEASE}) AS at
        FROM storage_backend_configs d
        WHERE {due.SENDABLE} AND (CAST(:only AS bigint) IS NULL OR d.id = :only) OFFSET 0) due
    WHERE due.at <= {due.NOW}
    ORDER BY due.at
""")


@dataclass(frozen=True, slots=True)
class Due:
    """A destination that has a due batch."""

    destination_id: int
    at_once: int
    """Batches that may be sent to it at a time."""


def due_destinations(tx: Connection, only: int | None) -> list[Due]:
    """Return the destinations that are neither disabled nor held and have a due batch, the longest due first."""
    return [Due(row.id, row.at_once) for row in tx.execute(_DUE_DESTINATIONS, {"only": only})]
