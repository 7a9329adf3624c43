"""What operating examsend needs: acts of people, the last pass of each command, and totals that outlive what they count."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index, Integer, SmallInteger, text
from sqlalchemy.orm import Mapped, mapped_column

from examsend.db.tables.base import NOW, Base, one_of
from examsend.states import Act, Stage


class Event(Base):
    """One act: by a person (who, when, why), or of a destination that went down or came back."""

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=NOW)
    act: Mapped[str]
    # The login name of a person; "examsend" for what a pass did.
    who: Mapped[str]
    host: Mapped[str]
    # No foreign key: the act stays on record when the batch is pruned.
    batch_id: Mapped[int | None]
    study_instance_uid: Mapped[str | None]
    destination_id: Mapped[int | None] = mapped_column(ForeignKey("storage_backend_configs.id"))
    # As in exam_batch_instances.processed_filepath.
    file_path: Mapped[str | None]
    why: Mapped[str | None]

    __table_args__ = (
        CheckConstraint(one_of("act", Act), name="act"),
        Index("ix_events_batch", "batch_id", postgresql_where=text("batch_id IS NOT NULL")),
        Index("ix_events_study", "study_instance_uid", postgresql_where=text("study_instance_uid IS NOT NULL")),
        Index("ix_events_at", "at"),
    )


class CommandPass(Base):
    """The last pass of a command on a host."""

    __tablename__ = "command_passes"

    command: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str] = mapped_column(primary_key=True)
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime]
    seconds: Mapped[float]
    exit_code: Mapped[int] = mapped_column(Integer)
    # Since the row exists: passes, and those that ended with an exit code other than 0.
    passes: Mapped[int]
    failures: Mapped[int]

    __table_args__ = (Index("ix_command_passes_finished", "command", "finished_at"),)


class DeliveryTotal(Base):
    """What happened at a destination in one hour. ``shard`` keeps parallel senders from waiting for each other's row."""

    __tablename__ = "delivery_totals"

    destination_id: Mapped[int] = mapped_column(ForeignKey("storage_backend_configs.id"), primary_key=True)
    # The beginning of the hour (UTC), or of the day once it is summed up.
    hour: Mapped[datetime] = mapped_column(primary_key=True)
    shard: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    associations: Mapped[int] = mapped_column(server_default=text("0"))
    established: Mapped[int] = mapped_column(server_default=text("0"))
    # Established, and released after every response.
    released: Mapped[int] = mapped_column(server_default=text("0"))
    association_seconds: Mapped[float] = mapped_column(server_default=text("0"))
    stored: Mapped[int] = mapped_column(server_default=text("0"))
    failed: Mapped[int] = mapped_column(server_default=text("0"))
    # Instances offered that had been offered before.
    resent: Mapped[int] = mapped_column(server_default=text("0"))
    bytes_sent: Mapped[int] = mapped_column(server_default=text("0"))
    sent_batches: Mapped[int] = mapped_column(server_default=text("0"))
    failed_batches: Mapped[int] = mapped_column(server_default=text("0"))
    # Of the SENT batches: instances, seconds from the first instance to READY, and from READY to SENT.
    sent_instances: Mapped[int] = mapped_column(server_default=text("0"))
    ready_seconds: Mapped[float] = mapped_column(server_default=text("0"))
    sent_seconds: Mapped[float] = mapped_column(server_default=text("0"))


class StatusTotal(Base):
    """How often a destination answered a C-STORE with a status."""

    __tablename__ = "status_totals"

    destination_id: Mapped[int] = mapped_column(ForeignKey("storage_backend_configs.id"), primary_key=True)
    dimse_status: Mapped[int] = mapped_column(Integer, primary_key=True)
    shard: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    answers: Mapped[int] = mapped_column(server_default=text("0"))


class DurationTotal(Base):
    """How many SENT batches took how long for a stage: one row for each bucket of the histogram, not cumulative."""

    __tablename__ = "duration_totals"

    destination_id: Mapped[int] = mapped_column(ForeignKey("storage_backend_configs.id"), primary_key=True)
    stage: Mapped[str] = mapped_column(primary_key=True)
    # The upper bound in seconds; "Infinity" for the last.
    bucket: Mapped[float] = mapped_column(primary_key=True)
    shard: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    batches: Mapped[int] = mapped_column(server_default=text("0"))
    seconds: Mapped[float] = mapped_column(server_default=text("0"))

    __table_args__ = (CheckConstraint(one_of("stage", Stage), name="stage"),)
