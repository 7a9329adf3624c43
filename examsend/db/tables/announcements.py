"""What is announced of studies, and which series have arrived."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index, Integer, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from examsend.db.tables.base import NOW, Base, one_of
from examsend.states import ExpectationSource, ExpectationState


class StudyExpectation(Base):
    """One announcement: a performed procedure step, a manifest, a count, an archive's answer, or a hint in the files.

    It names instances (expected_instances), series (expected_series) and studies (expectation_studies), or only a count.
    """

    __tablename__ = "study_expectations"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    source: Mapped[str]
    # MPPS: the SOP Instance UID of the step. Others: the Study Instance UID; ARCHIVE: also the archive.
    source_uid: Mapped[str]
    state: Mapped[str]
    # Of a study's instances, where they are not named.
    expected_count: Mapped[int | None] = mapped_column(Integer)
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    # When it was announced or changed last.
    updated_at: Mapped[datetime] = mapped_column(server_default=NOW)
    # It is not evaluated yet: the next finalize looks at the batches that it touches.
    changed: Mapped[bool] = mapped_column(server_default=text("true"))
    # An operator has withdrawn it (examsend expect --forget). It is not regarded any more.
    forgotten_at: Mapped[datetime | None]
    # ARCHIVE: when it was asked last, and why there was no answer.
    asked_at: Mapped[datetime | None]
    failure: Mapped[str | None]

    __table_args__ = (
        UniqueConstraint("source", "source_uid"),
        CheckConstraint(one_of("source", ExpectationSource), name="source"),
        CheckConstraint(one_of("state", ExpectationState), name="state"),
        CheckConstraint("expected_count >= 0", name="count"),
        Index("ix_study_expectations_changed", "id", postgresql_where=text("changed")),
    )


class ExpectationStudy(Base):
    """A study that an announcement names. It also touches the studies under which its instances or series arrive."""

    __tablename__ = "expectation_studies"

    study_instance_uid: Mapped[str] = mapped_column(primary_key=True)
    expectation_id: Mapped[int] = mapped_column(
        ForeignKey("study_expectations.id", ondelete="CASCADE"), primary_key=True
    )

    __table_args__ = (Index("ix_expectation_studies_expectation", "expectation_id"),)


class ExpectedSeries(Base):
    """A series that an announcement names."""

    __tablename__ = "expected_series"

    expectation_id: Mapped[int] = mapped_column(
        ForeignKey("study_expectations.id", ondelete="CASCADE"), primary_key=True
    )
    series_instance_uid: Mapped[str] = mapped_column(primary_key=True)
    # None of its instances is named: at least one must arrive.
    bare: Mapped[bool]

    __table_args__ = (Index("ix_expected_series_series", "series_instance_uid"),)


class ExpectedInstance(Base):
    """An instance that an announcement names."""

    __tablename__ = "expected_instances"

    expectation_id: Mapped[int] = mapped_column(
        ForeignKey("study_expectations.id", ondelete="CASCADE"), primary_key=True
    )
    sop_instance_uid: Mapped[str] = mapped_column(primary_key=True)
    series_instance_uid: Mapped[str | None]

    __table_args__ = (Index("ix_expected_instances_sop", "sop_instance_uid"),)


class StudySeries(Base):
    """A series of which instances have arrived for a destination."""

    __tablename__ = "study_series"

    destination_id: Mapped[int] = mapped_column(ForeignKey("storage_backend_configs.id"), primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(primary_key=True)
    series_instance_uid: Mapped[str] = mapped_column(primary_key=True)
    modality: Mapped[str | None]
    # Only where the destination has --required-series.
    description: Mapped[str | None]
    last_instance_at: Mapped[datetime] = mapped_column(server_default=NOW)

    __table_args__ = (Index("ix_study_series_series", "series_instance_uid"),)
