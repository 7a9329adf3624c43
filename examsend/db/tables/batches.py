"""Destinations, batches, instances, attempts and rejected files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, fields
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    Table,
    Text,
    TextClause,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import Double, TypeEngine

from examsend.config.destination import DestinationSettings, type_of
from examsend.db.rules import NUMBERS
from examsend.db.tables.base import NOW, Base, one_of
from examsend.states import (
    BatchState,
    Confirm,
    LatePolicy,
    OnDisputed,
    OnIncomplete,
    Outcome,
    SenderName,
    Transcode,
)

_SQL_TYPES: dict[str, type[TypeEngine[Any]]] = {
    "str": Text, "SenderName": Text, "Transcode": Text, "LatePolicy": Text, "OnIncomplete": Text, "Confirm": Text,
    "OnDisputed": Text,
    "float": Double, "int": Integer, "bool": Boolean,
}  # fmt: skip


def _setting_columns() -> Iterator[Column[Any]]:
    """Yield a column for each declared setting of a destination, with its type and default; nullable if it may be not set."""
    for setting in fields(DestinationSettings):
        kind, optional = type_of(setting)
        default = None if setting.default in {None, MISSING} else _literal(setting.default)
        yield Column(setting.name, _SQL_TYPES[kind], nullable=optional, server_default=default)


def _literal(value: object) -> str | TextClause:
    if isinstance(value, bool):
        return text(str(value).lower())
    return text(f"{value:g}") if isinstance(value, int | float) else str(value)


class StorageBackendConfig(Base):
    """A destination."""

    __table__ = Table(
        "storage_backend_configs",
        Base.metadata,
        Column("id", BigInteger, Identity(always=True), primary_key=True),
        Column("name", Text, nullable=False, unique=True),
        Column("kind", Text, nullable=False, server_default="dimse"),
        *_setting_columns(),
        # Its health.
        Column("held_until", DateTime(timezone=True)),
        Column("held_code", Text),
        Column("held_reason", Text),
        Column("consecutive_failures", Integer, nullable=False, server_default=text("0")),
        Column("last_success_at", DateTime(timezone=True)),
        # Since when nothing can be delivered: the first failure that held it, until it stores again.
        Column("down_since", DateTime(timezone=True)),
        # When a pass said last that it is down, and since when it was then; both NULL once a pass has said that it is back.
        Column("told_at", DateTime(timezone=True)),
        Column("told_since", DateTime(timezone=True)),
        # Until when its archive is not asked to confirm anything, after how many failures in a row, and why.
        Column("confirm_held_until", DateTime(timezone=True)),
        Column("confirm_failures", Integer, nullable=False, server_default=text("0")),
        Column("confirm_problem", Text),
        Column("created_at", DateTime(timezone=True), nullable=False, server_default=NOW),
        # Set when the destination is removed. The row is kept for its batches and attempts.
        Column("removed_at", DateTime(timezone=True)),
        CheckConstraint("port BETWEEN 1 AND 65535", name="port"),
        CheckConstraint("length(called_aet) BETWEEN 1 AND 16 AND length(calling_aet) BETWEEN 1 AND 16", name="aet"),
        CheckConstraint("length(name) BETWEEN 1 AND 64 OR removed_at IS NOT NULL", name="name"),
        CheckConstraint(one_of("sender", SenderName), name="sender"),
        CheckConstraint(one_of("fallback_sender", SenderName), name="fallback_sender"),
        CheckConstraint("fallback_sender <> sender", name="other_sender"),
        CheckConstraint(one_of("transcode", Transcode), name="transcode"),
        CheckConstraint(one_of("late_policy", LatePolicy), name="late_policy"),
        CheckConstraint(one_of("late_policy_after", LatePolicy), name="late_policy_after"),
        CheckConstraint(one_of("on_incomplete", OnIncomplete), name="on_incomplete"),
        CheckConstraint(one_of("confirm", Confirm), name="confirm"),
        CheckConstraint(one_of("on_disputed", OnDisputed), name="on_disputed"),
        CheckConstraint("after IN ('keep', 'remove') OR after LIKE 'move:/%'", name="after"),
        *(CheckConstraint(rule, name=name) for name, rule in NUMBERS.items()),
    )


class ExamBatch(Base):
    """Instances of one study that are sent together to one destination."""

    __tablename__ = "exam_batches"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    study_instance_uid: Mapped[str]
    destination_id: Mapped[int] = mapped_column(ForeignKey("storage_backend_configs.id"))
    status: Mapped[str] = mapped_column(server_default="PENDING")
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    last_instance_at: Mapped[datetime] = mapped_column(server_default=NOW)
    # An ingest that has seen the study runs, and renews this (examsend/queue/keep_open.py).
    ingesting_until: Mapped[datetime | None]
    # PENDING: when finalize looks at it next; "infinity": not until something happens to it.
    check_at: Mapped[datetime] = mapped_column(server_default=NOW)
    # PENDING: when finalize looks next whether the archive of its destination (expect_from) is to be asked about it.
    ask_at: Mapped[datetime] = mapped_column(server_default=NOW)
    # Instances have arrived since finalize looked at it.
    grown: Mapped[bool] = mapped_column(server_default=text("true"))
    ready_at: Mapped[datetime | None]
    ready_reason: Mapped[str | None]
    follows_batch_id: Mapped[int | None] = mapped_column(ForeignKey("exam_batches.id", ondelete="SET NULL"))
    next_attempt_at: Mapped[datetime | None]
    attempt_count: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    attempt_id: Mapped[UUID | None]
    claimed_by: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    failure_code: Mapped[str | None]
    failure: Mapped[str | None]
    # An operator holds it (examsend hold): no finalize and no send takes it on.
    held_at: Mapped[datetime | None]
    held_reason: Mapped[str | None]
    # An operator wants it sent before the others (examsend prioritize).
    prioritized_at: Mapped[datetime | None]
    # Set by a trigger (migration 0002).
    updated_at: Mapped[datetime] = mapped_column(server_default=NOW)

    __table_args__ = (
        CheckConstraint(one_of("status", BatchState), name="status"),
        CheckConstraint(
            "(status = 'SENDING') = (attempt_id IS NOT NULL) AND (status = 'SENDING') = (lease_expires_at IS NOT NULL)",
            name="claim",
        ),
        CheckConstraint("(status IN ('SENT', 'FAILED')) = (finished_at IS NOT NULL)", name="finished"),
        CheckConstraint("status = 'PENDING' OR ready_at IS NOT NULL", name="ready"),
        CheckConstraint("(status = 'READY') = (next_attempt_at IS NOT NULL)", name="due"),
        CheckConstraint("status <> 'FAILED' OR failure_code IS NOT NULL", name="failure"),
        # Target of the composite foreign key of exam_batch_instances.
        UniqueConstraint("id", "destination_id"),
        Index(
            "uq_exam_batches_pending",
            "study_instance_uid",
            "destination_id",
            unique=True,
            postgresql_where=text("status = 'PENDING'"),
        ),
        Index(
            "uq_exam_batches_sending",
            "study_instance_uid",
            "destination_id",
            unique=True,
            postgresql_where=text("status = 'SENDING'"),
        ),
        Index("ix_exam_batches_study", "study_instance_uid", "destination_id"),
        Index("ix_exam_batches_check", "destination_id", "check_at", postgresql_where=text("status = 'PENDING'")),
        Index("ix_exam_batches_ask", "destination_id", "ask_at", postgresql_where=text("status = 'PENDING'")),
        Index("ix_exam_batches_due", "destination_id", "next_attempt_at", postgresql_where=text("status = 'READY'")),
        Index(
            "ix_exam_batches_ready_at",
            "destination_id",
            "ready_at",
            postgresql_where=text("status = 'READY' AND held_at IS NULL"),
        ),
        Index("ix_exam_batches_held", "id", postgresql_where=text("held_at IS NOT NULL")),
        Index(
            "ix_exam_batches_lease", "destination_id", "lease_expires_at", postgresql_where=text("status = 'SENDING'")
        ),
        Index("ix_exam_batches_failed", "destination_id", "finished_at", postgresql_where=text("status = 'FAILED'")),
        Index("ix_exam_batches_finished", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
        Index("ix_exam_batches_follows", "follows_batch_id", postgresql_where=text("follows_batch_id IS NOT NULL")),
    )


class ExamBatchInstance(Base):
    """One instance of a batch, and its file."""

    __tablename__ = "exam_batch_instances"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    batch_id: Mapped[int]
    destination_id: Mapped[int]
    sop_instance_uid: Mapped[str]
    # Read from the file. All are NULL in a row taken over from an older database, until its file is read.
    series_instance_uid: Mapped[str | None]
    sop_class_uid: Mapped[str | None]
    transfer_syntax_uid: Mapped[str | None]
    series_number: Mapped[int | None]
    instance_number: Mapped[int | None]
    # A path that is not UTF-8 is stored as a percent-encoded file: URI (examsend/queue/files.py).
    processed_filepath: Mapped[str]
    # The mount point of the file (NULL: the root file system). If it is not mounted, the file is not MISSING.
    mount_point: Mapped[str | None]
    file_size: Mapped[int | None]
    file_mtime_ns: Mapped[int | None]
    # NULL: not compared. So it is in rows of an earlier version, until their files are read again.
    file_inode: Mapped[int | None]
    file_ctime_ns: Mapped[int | None]
    dataset_offset: Mapped[int | None]
    # NULL also in a row of before the digest was BLAKE3, until its file is read again.
    content_digest: Mapped[bytes | None]
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    outcome: Mapped[str] = mapped_column(server_default="WAITING")
    dimse_status: Mapped[int | None] = mapped_column(Integer)
    error_comment: Mapped[str | None]
    attempts: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    # Number of consecutive abnormal ends of associations at which it was sent and not answered. It identifies an instance
    # that makes the receiver end the association.
    lost_in_flight: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    # How often it was refused or not answered while the destination stored others.
    strikes: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    stored_at: Mapped[datetime | None]
    # Other content was, or may have been, sent to the destination under this SOP Instance UID. The archive may hold that, whatever
    # it answers about the UID, so its answers do not prove that it has this content (examsend/queue/contents.py).
    other_content_possible: Mapped[bool] = mapped_column(server_default=text("false"))
    # Registered when its SOP Instance UID was known with other content.
    another_version: Mapped[bool] = mapped_column(server_default=text("false"))

    __table_args__ = (
        ForeignKeyConstraint(
            ["batch_id", "destination_id"],
            ["exam_batches.id", "exam_batches.destination_id"],
            name="fk_exam_batch_instances_batch",
            ondelete="CASCADE",
        ),
        CheckConstraint(one_of("outcome", Outcome), name="outcome"),
        CheckConstraint("(outcome = 'STORED') = (stored_at IS NOT NULL)", name="stored"),
        CheckConstraint("octet_length(content_digest) = 32", name="digest"),
        CheckConstraint(
            "num_nulls(series_instance_uid, sop_class_uid, transfer_syntax_uid, file_size, file_mtime_ns, dataset_offset)"
            " IN (0, 6) AND (content_digest IS NULL OR series_instance_uid IS NOT NULL)",
            name="identified",
        ),
        CheckConstraint("dataset_offset >= 0 AND file_size >= dataset_offset", name="size"),
        # A superseded version stays in its batch beside the version that replaced it.
        Index(
            "uq_exam_batch_instances_version",
            "batch_id",
            "sop_instance_uid",
            unique=True,
            postgresql_where=text("outcome <> 'SUPERSEDED'"),
        ),
        Index("ix_exam_batch_instances_batch", "batch_id"),
        Index("ix_exam_batch_instances_known", "destination_id", "sop_instance_uid"),
        Index("ix_exam_batch_instances_path", "processed_filepath", postgresql_using="hash"),
        Index(
            "ix_exam_batch_instances_versions",
            "destination_id",
            "sop_instance_uid",
            postgresql_where=text("another_version"),
        ),
        Index(
            "ix_exam_batch_instances_unsent",
            "batch_id",
            postgresql_where=text("outcome NOT IN ('STORED', 'SUPERSEDED')"),
        ),
    )


class InstanceAlias(Base):
    """Another path of a file with the same content as an instance. It is known, so that ingest need not read it again."""

    __tablename__ = "exam_batch_instance_aliases"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    instance_id: Mapped[int] = mapped_column(ForeignKey("exam_batch_instances.id", ondelete="CASCADE"))
    file_path: Mapped[str]
    file_size: Mapped[int]
    file_mtime_ns: Mapped[int]
    file_inode: Mapped[int | None]
    file_ctime_ns: Mapped[int | None]
    # What sending needs where this file stands in. NULL in rows of an earlier version: as in the instance.
    mount_point: Mapped[str | None]
    dataset_offset: Mapped[int | None]
    transfer_syntax_uid: Mapped[str | None]

    __table_args__ = (
        Index("uq_exam_batch_instance_aliases_path", "instance_id", text("md5(file_path)"), unique=True),
        Index("ix_exam_batch_instance_aliases_path", "file_path", postgresql_using="hash"),
    )


class SendAttempt(Base):
    """One association of an attempt."""

    __tablename__ = "send_attempts"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    batch_id: Mapped[int] = mapped_column(ForeignKey("exam_batches.id", ondelete="CASCADE"))
    destination_id: Mapped[int] = mapped_column(ForeignKey("storage_backend_configs.id"))
    attempt_id: Mapped[UUID]
    # Number of the association in its attempt, from 1. There are several for more than 128 presentation contexts, or after a
    # file that changed while it was sent.
    association: Mapped[int] = mapped_column(Integer, server_default=text("1"))
    host: Mapped[str]
    pid: Mapped[int] = mapped_column(Integer)
    sender: Mapped[str]
    started_at: Mapped[datetime] = mapped_column(server_default=NOW)
    finished_at: Mapped[datetime | None]
    # From connect to the end of the association, by the sender's monotonic clock.
    association_seconds: Mapped[float | None]
    result: Mapped[str] = mapped_column(server_default="RUNNING")
    established: Mapped[bool] = mapped_column(server_default=text("false"))
    result_code: Mapped[int | None] = mapped_column(Integer)
    source_code: Mapped[int | None] = mapped_column(Integer)
    reason_code: Mapped[int | None] = mapped_column(Integer)
    detail: Mapped[str | None]
    peer_implementation: Mapped[str | None]
    async_window: Mapped[int | None] = mapped_column(Integer)
    instances: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    stored: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    failed: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    bytes_sent: Mapped[int] = mapped_column(server_default=text("0"))

    __table_args__ = (
        UniqueConstraint("attempt_id", "association"),
        CheckConstraint("(result = 'RUNNING') = (finished_at IS NULL)", name="finished"),
        Index("ix_send_attempts_batch", "batch_id"),
        Index("ix_send_attempts_destination", "destination_id", "started_at"),
    )


class RejectedFile(Base):
    """A file that could not be registered."""

    __tablename__ = "rejected_files"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    file_path: Mapped[str]
    file_size: Mapped[int]
    file_mtime_ns: Mapped[int]
    file_inode: Mapped[int | None]
    file_ctime_ns: Mapped[int | None]
    reason_code: Mapped[str]
    reason: Mapped[str]
    first_seen_at: Mapped[datetime] = mapped_column(server_default=NOW)
    last_seen_at: Mapped[datetime] = mapped_column(server_default=NOW)
    # As far as they could be read.
    study_instance_uid: Mapped[str | None]
    sop_instance_uid: Mapped[str | None]
    # When an ingest has reported it; NULL: the next one does.
    reported_at: Mapped[datetime | None]
    # An operator has set it aside (examsend rejected --dismiss). It is not counted any more.
    dismissed_at: Mapped[datetime | None]
    dismissed_by: Mapped[str | None]
    dismissed_why: Mapped[str | None]

    __table_args__ = (
        CheckConstraint(
            "num_nulls(dismissed_at, dismissed_by, dismissed_why) IN (0, 3)",
            name="dismissed",
        ),
        Index("ix_rejected_files_study", "study_instance_uid", postgresql_where=text("study_instance_uid IS NOT NULL")),
        Index("ix_rejected_files_open", "first_seen_at", postgresql_where=text("dismissed_at IS NULL")),
        # A path may be longer than an index entry allows; its digest is not.
        Index("uq_rejected_files_path", text("md5(file_path)"), unique=True),
        Index("ix_rejected_files_last_seen", "last_seen_at"),
    )
