"""Proof of delivery: what archives confirm of SENT batches, and the sources that were let go on that proof."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import ARRAY, BigInteger, CheckConstraint, ForeignKey, Identity, Index, Integer, text
from sqlalchemy.orm import Mapped, mapped_column

from examsend.db.tables.base import NOW, Base, one_of
from examsend.states import Confirmation, Proof, Verdict


class BatchConfirmation(Base):
    """What is asked and known of a SENT batch at its archive. The row is opened when the batch is SENT, or asked for by name."""

    __tablename__ = "batch_confirmations"

    batch_id: Mapped[int] = mapped_column(ForeignKey("exam_batches.id", ondelete="CASCADE"), primary_key=True)
    destination_id: Mapped[int] = mapped_column(ForeignKey("storage_backend_configs.id"))
    state: Mapped[str] = mapped_column(server_default="UNCONFIRMED")
    # The confirm_timeout of its destination begins: when it was SENT, or when somebody asked for it again.
    opened_at: Mapped[datetime] = mapped_column(server_default=NOW)
    # How it is asked about; NULL: as its destination's setting says.
    method: Mapped[str | None]
    # When confirm takes it on next; while it is claimed, when the claim ends; NULL: not by itself.
    due_at: Mapped[datetime | None]
    # How often it was asked about since opened_at.
    tries: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    asked_at: Mapped[datetime | None]
    claim_id: Mapped[UUID | None]
    claimed_by: Mapped[str | None]
    confirmed_at: Mapped[datetime | None]
    disputed_at: Mapped[datetime | None]
    # The confirm_timeout is over, or nothing is left to ask: it is for a person.
    gave_up_at: Mapped[datetime | None]
    reason: Mapped[str | None]
    # The batch in which its disputed instances were sent again. No foreign key: it may be pruned earlier.
    resent_batch_id: Mapped[int | None]
    # When confirm looks whether its sources may go; NULL: it does not.
    let_go_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint(one_of("state", Confirmation), name="state"),
        CheckConstraint("method IN ('commitment', 'query')", name="method"),
        CheckConstraint("(state = 'CONFIRMED') = (confirmed_at IS NOT NULL)", name="confirmed"),
        CheckConstraint("(state = 'DISPUTED') = (disputed_at IS NOT NULL)", name="disputed"),
        CheckConstraint("claim_id IS NULL OR due_at IS NOT NULL", name="claim"),
        Index("ix_batch_confirmations_due", "destination_id", "due_at", postgresql_where=text("due_at IS NOT NULL")),
        Index(
            "ix_batch_confirmations_open",
            "destination_id",
            "state",
            "opened_at",
            postgresql_where=text("state <> 'CONFIRMED'"),
        ),
        Index("ix_batch_confirmations_confirmed", "destination_id", "confirmed_at"),
        Index(
            "ix_batch_confirmations_given_up",
            "destination_id",
            "state",
            postgresql_where=text("gave_up_at IS NOT NULL"),
        ),
        Index("ix_batch_confirmations_resent", "resent_batch_id", postgresql_where=text("resent_batch_id IS NOT NULL")),
        Index(
            "ix_batch_confirmations_let_go",
            "destination_id",
            "let_go_at",
            postgresql_where=text("let_go_at IS NOT NULL"),
        ),
    )


class CommitmentRequest(Base):
    """One N-ACTION of Storage Commitment. It is on record before it is sent: the report may come first."""

    __tablename__ = "commitment_requests"

    transaction_uid: Mapped[str] = mapped_column(primary_key=True)
    batch_id: Mapped[int] = mapped_column(ForeignKey("exam_batches.id", ondelete="CASCADE"))
    # The AE title that was asked, and that may report.
    archive_aet: Mapped[str]
    # Of exam_batch_instances: what it was asked about.
    instance_ids: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    requested_at: Mapped[datetime] = mapped_column(server_default=NOW)
    # Of the N-ACTION response; NULL: none was received.
    status: Mapped[int | None] = mapped_column(Integer)
    reported_at: Mapped[datetime | None]
    reports: Mapped[int] = mapped_column(Integer, server_default=text("0"))

    __table_args__ = (Index("ix_commitment_requests_batch", "batch_id"),)


class InstanceConfirmation(Base):
    """The archive's last answer about one instance of a SENT batch."""

    __tablename__ = "instance_confirmations"

    instance_id: Mapped[int] = mapped_column(
        ForeignKey("exam_batch_instances.id", ondelete="CASCADE"), primary_key=True
    )
    batch_id: Mapped[int]
    verdict: Mapped[str]
    proof: Mapped[str | None]
    # When the question that it answers was asked: what was stored later, it says nothing about.
    requested_at: Mapped[datetime]
    answered_at: Mapped[datetime] = mapped_column(server_default=NOW)
    confirmed_at: Mapped[datetime | None]
    # Failure Reason (0008,1197).
    failure_reason: Mapped[int | None] = mapped_column(Integer)
    confirm_reason: Mapped[str | None]
    # Of the report; NULL: the archive was queried.
    transaction_uid: Mapped[str | None]
    # When it was put in line again because of this answer.
    resent_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint(one_of("verdict", Verdict), name="verdict"),
        CheckConstraint(one_of("proof", Proof), name="proof"),
        CheckConstraint(
            "(verdict = 'CONFIRMED') = (confirmed_at IS NOT NULL) AND (verdict = 'CONFIRMED') = (proof IS NOT NULL)",
            name="confirmed",
        ),
        Index("ix_instance_confirmations_batch", "batch_id"),
    )


class IngestedDirectory(Base):
    """A directory that was ingested. Only what lies in one is ever let go."""

    __tablename__ = "ingested_directories"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    # As in exam_batch_instances.processed_filepath.
    path: Mapped[str]
    first_seen_at: Mapped[datetime] = mapped_column(server_default=NOW)

    __table_args__ = (Index("uq_ingested_directories_path", text("md5(path)"), unique=True),)


class SourceRemoval(Base):
    """A source that may go. The row is committed before the file is touched, and outlives its batch."""

    __tablename__ = "source_removals"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    path: Mapped[str]
    content_digest: Mapped[bytes]
    file_size: Mapped[int]
    file_inode: Mapped[int]
    study_instance_uid: Mapped[str]
    sop_instance_uid: Mapped[str]
    # Where it was moved; NULL: it was removed.
    move_to: Mapped[str | None]
    # On whose proof: a sentence for each destination.
    proof: Mapped[str]
    host: Mapped[str]
    decided_at: Mapped[datetime] = mapped_column(server_default=NOW)
    # It is gone from its path; or it was found to be another file, and stays. Both NULL: a pass has died in between.
    removed_at: Mapped[datetime | None]
    kept_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("removed_at IS NULL OR kept_at IS NULL", name="ended"),
        Index("ix_source_removals_open", "decided_at", postgresql_where=text("removed_at IS NULL AND kept_at IS NULL")),
        Index("ix_source_removals_study", "study_instance_uid"),
        Index("ix_source_removals_path", "path", postgresql_using="hash"),
    )
