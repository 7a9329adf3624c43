"""Performed procedure steps from a real modality, as stored by the real process."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from examsend.config.settings import Settings
from examsend.db import access, engine
from examsend.dimse.inbound import Request
from examsend.services.mpps import PerformedSteps
from examsend.services.service import N_CREATE_RQ, N_SET_RQ
from tests.cluster import Cluster
from tests.helpers import execute, one, rows
from tests.services.process import MPPS, Listen, listening, modality, status
from tests.services.test_step import item, performed, references

IN_PROGRESS: dict[str, Any] = {"PerformedProcedureStepStatus": "IN PROGRESS", "PerformedSeriesSequence": []}


@pytest.fixture(scope="module")
def served(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Listen, engine.Database]]:
    """The process and its database, which the tests of this module share."""
    name = cluster.migrated()
    url = cluster.url(name)
    with listening(tmp_path_factory.mktemp("listen"), url) as made, access.opened(Settings(database_url=url)) as opened:
        yield made, opened
    cluster.drop(name)


@pytest.fixture
def database(served: tuple[Listen, engine.Database]) -> engine.Database:
    """The database of the process, without any step."""
    execute(served[1], "TRUNCATE study_expectations CASCADE")
    return served[1]


@pytest.fixture
def listen(served: tuple[Listen, engine.Database], database: engine.Database) -> Listen:
    """The process."""
    return served[0]


def _series(uid: str, *instances: str) -> Dataset:
    return item(SeriesInstanceUID=uid, ReferencedImageSequence=references(*instances))


def _expected(database: engine.Database) -> set[tuple[str, str]]:
    return {tuple(r) for r in rows(database, "SELECT series_instance_uid, sop_instance_uid FROM expected_instances")}


def _state(database: engine.Database, uid: str = "1.2.9") -> str:
    return str(one(database, "SELECT state FROM study_expectations WHERE source_uid = :uid", uid=uid))


def test_a_step_is_stored_with_what_it_lists(listen: Listen, database: engine.Database) -> None:
    with modality(listen.port) as association:
        assert status(association.send_n_create(performed(**IN_PROGRESS), MPPS, "1.2.9")) == 0
        assert _state(database) == "IN PROGRESS"
        assert _expected(database) == set()
        assert status(association.send_n_set(performed(), MPPS, "1.2.9")) == 0
    assert _state(database) == "COMPLETED"
    assert [r[0] for r in rows(database, "SELECT study_instance_uid FROM expectation_studies")] == ["1.2.3"]
    assert _expected(database) == {("1.2.3.1", "1.2.3.1.1"), ("1.2.3.1", "1.2.3.1.2"), ("1.2.3.1", "1.2.3.1.9")}
    bare = rows(database, "SELECT series_instance_uid, bare FROM expected_series ORDER BY 1")
    assert [tuple(r) for r in bare] == [("1.2.3.1", False), ("1.2.3.2", True)]


def test_each_n_set_with_the_list_replaces_it_and_one_without_leaves_it(
    listen: Listen, database: engine.Database
) -> None:
    with modality(listen.port) as association:
        first = performed(**{**IN_PROGRESS, "PerformedSeriesSequence": [_series("1.1", "1.1.1")]})
        assert status(association.send_n_create(first, MPPS, "1.2.9")) == 0
        assert _expected(database) == {("1.1", "1.1.1")}
        second = item(PerformedSeriesSequence=[_series("1.2", "1.2.1", "1.2.2")])
        assert status(association.send_n_set(second, MPPS, "1.2.9")) == 0
        assert _expected(database) == {("1.2", "1.2.1"), ("1.2", "1.2.2")}
        assert _state(database) == "IN PROGRESS"
        assert status(association.send_n_set(item(PerformedProcedureStepStatus="DISCONTINUED"), MPPS, "1.2.9")) == 0
    assert _expected(database) == {("1.2", "1.2.1"), ("1.2", "1.2.2")}
    assert _state(database) == "DISCONTINUED"


def test_a_change_is_looked_at_by_the_next_finalize(listen: Listen, database: engine.Database) -> None:
    with modality(listen.port) as association:
        association.send_n_create(performed(**IN_PROGRESS), MPPS, "1.2.9")
        execute(database, "UPDATE study_expectations SET changed = false")
        association.send_n_set(performed(), MPPS, "1.2.9")
    assert one(database, "SELECT changed FROM study_expectations") is True


def test_a_step_without_a_uid_gets_one(listen: Listen, database: engine.Database) -> None:
    with modality(listen.port) as association:
        answer = association.send_n_create(performed(**IN_PROGRESS), MPPS, None)
        assert status(answer) == 0
        made = one(database, "SELECT source_uid FROM study_expectations")
        assert made.startswith("2.25.")
        # The answer names it: a modality that does not know it could not go on.
        assert status(association.send_n_set(performed(), MPPS, made)) == 0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"PerformedProcedureStepStatus": None}, 0x0120),
        ({"PerformedProcedureStepStatus": ""}, 0x0121),
        ({"PerformedProcedureStepStatus": "COMPLETED"}, 0x0106),
        ({"PerformedProcedureStepStatus": "DISCONTINUED"}, 0x0106),
        ({"ScheduledStepAttributesSequence": None}, 0x0120),
        ({"ScheduledStepAttributesSequence": []}, 0x0121),
        ({"ScheduledStepAttributesSequence": [item()]}, 0x0120),
        ({"ScheduledStepAttributesSequence": [item(StudyInstanceUID="")]}, 0x0121),
        ({"PerformedSeriesSequence": [item()]}, 0x0120),
        ({"PerformedSeriesSequence": [item(SeriesInstanceUID="1.2", ReferencedImageSequence=[item()])]}, 0x0120),
    ],
)
def test_an_n_create_that_lacks_what_is_used_is_refused_and_nothing_is_stored(
    listen: Listen, database: engine.Database, change: dict[str, Any], expected: int
) -> None:
    data = performed(**{**IN_PROGRESS, **{k: v for k, v in change.items() if v is not None}})
    for keyword in (k for k, v in change.items() if v is None):
        delattr(data, keyword)
    with modality(listen.port) as association:
        answer = association.send_n_create(data, MPPS, "1.2.9")
        assert status(answer) == expected
        assert answer[0].ErrorComment
        # The association goes on.
        assert status(association.send_n_create(performed(**IN_PROGRESS), MPPS, "1.2.10")) == 0
    assert one(database, "SELECT count(*) FROM study_expectations") == 1


def test_what_is_not_used_may_be_missing(listen: Listen, database: engine.Database) -> None:
    least = item(
        PerformedProcedureStepStatus="IN PROGRESS", ScheduledStepAttributesSequence=[item(StudyInstanceUID="1.2.3")]
    )
    with modality(listen.port) as association:
        assert status(association.send_n_create(least, MPPS, "1.2.9")) == 0
        assert status(association.send_n_set(item(PerformedProcedureStepStatus="COMPLETED"), MPPS, "1.2.9")) == 0
    assert _state(database) == "COMPLETED"
    assert one(database, "SELECT count(*) FROM expected_series") == 0


def test_a_second_n_create_is_a_duplicate_and_changes_nothing(listen: Listen, database: engine.Database) -> None:
    with modality(listen.port) as association:
        assert status(association.send_n_create(performed(**IN_PROGRESS), MPPS, "1.2.9")) == 0
        again = performed(**{**IN_PROGRESS, "PerformedSeriesSequence": [_series("1.1", "1.1.1")]})
        assert status(association.send_n_create(again, MPPS, "1.2.9")) == 0x0111
    assert _expected(database) == set()


def test_an_n_set_of_an_unknown_step_is_refused(listen: Listen) -> None:
    with modality(listen.port) as association:
        assert status(association.send_n_set(performed(), MPPS, "1.2.9")) == 0x0112


@pytest.mark.parametrize("final", ["COMPLETED", "DISCONTINUED"])
def test_a_step_in_a_final_state_is_no_longer_updated(listen: Listen, database: engine.Database, final: str) -> None:
    with modality(listen.port) as association:
        association.send_n_create(performed(**IN_PROGRESS), MPPS, "1.2.9")
        assert status(association.send_n_set(performed(PerformedProcedureStepStatus=final), MPPS, "1.2.9")) == 0
        before = _expected(database)
        answer = association.send_n_set(item(PerformedSeriesSequence=[]), MPPS, "1.2.9")
        assert status(answer) == 0x0110
        assert answer[0].ErrorID == 0xA710
    assert _expected(database) == before
    assert _state(database) == final


def test_other_commands_are_not_supported(listen: Listen) -> None:
    with modality(listen.port) as association:
        assert status(association.send_n_delete(MPPS, "1.2.9")) == 0x0211
        assert status(association.send_n_get([0x00400252], MPPS, "1.2.9")) == 0x0211


def test_another_sop_class_in_the_context_is_refused(listen: Listen, database: engine.Database) -> None:
    with modality(listen.port) as association:
        other = "1.2.840.10008.3.1.2.3.4"
        answer = association.send_n_create(performed(**IN_PROGRESS), other, "1.2.9", meta_uid=MPPS)
        assert status(answer) == 0x0118
    assert one(database, "SELECT count(*) FROM study_expectations") == 0


def _texts(database: engine.Database) -> str:
    """Return every value of every text column."""
    columns = rows(
        database,
        "SELECT table_name, column_name FROM information_schema.columns"
        " WHERE table_schema = 'public' AND data_type IN ('text', 'character varying', 'jsonb', 'ARRAY')",
    )
    return "\n".join(
        str(value[0])
        for table, column in columns
        for value in rows(database, f'SELECT "{column}"::text FROM "{table}" WHERE "{column}" IS NOT NULL')
    )


def test_no_patient_data_is_stored_or_logged(listen: Listen, database: engine.Database) -> None:
    secret = {
        "PatientName": "Secret^Sally",
        "PatientID": "SECRET1",
        "PatientBirthDate": "19010203",
        "PerformedProcedureStepID": "SECRET2",
        "PerformedProcedureStepDescription": "Secret description",
        "OtherPatientIDsSequence": [item(PatientID="SECRET3")],
    }
    with modality(listen.port) as association:
        association.send_n_create(performed(**IN_PROGRESS, **secret), MPPS, "1.2.9")
        association.send_n_create(performed(**{**secret, "PerformedProcedureStepStatus": "SECRET4"}), MPPS, "1.2.10")
        with pytest.warns(UserWarning, match="Invalid value for VR UI"):
            wrong = [item(StudyInstanceUID="SECRET5")]
        wrong_study = performed(**{**IN_PROGRESS, **secret, "ScheduledStepAttributesSequence": wrong})
        assert status(association.send_n_create(wrong_study, MPPS, "1.2.11")) == 0x0106
        series = item(SeriesInstanceUID="1.2.5", SeriesDescription="Secret series", OperatorsName="Secret^Op")
        assert status(association.send_n_set(performed(**secret, PerformedSeriesSequence=[series]), MPPS, "1.2.9")) == 0
    stored = _texts(database)
    assert "1.2.9" in stored
    for text in (stored, listen.text()):
        assert "secret" not in text.lower()
        assert "19010203" not in text


class _NoStorage:
    """Is never asked."""

    def run(self, work: object) -> Any:
        """Fail the test."""
        raise AssertionError("the database was asked")


@pytest.mark.parametrize("command", [N_CREATE_RQ, N_SET_RQ])
@pytest.mark.parametrize("uid", ["SECRET^X", "1..2", "1" * 65, "1.2\x00"])
def test_a_request_about_something_that_is_no_uid_is_refused(command: int, uid: str) -> None:
    request = Request(1, MPPS, "1.2.840.10008.1.2", command, 1, MPPS, uid, b"")
    reply = PerformedSteps(_NoStorage()).handle(request, "CT1")
    assert reply.status == 0x0117
    assert uid not in str(reply.error_comment)


def _tool(name: str) -> str | None:
    directory = os.environ.get("EXAMSEND_DCM4CHE")
    return shutil.which(name, path=f"{directory}/bin" if directory else None)


@pytest.mark.skipif(_tool("mppsscu") is None, reason="dcm4che's mppsscu is not there (EXAMSEND_DCM4CHE)")
def test_mppsscu_of_dcm4che(listen: Listen, database: engine.Database, tmp_path: Path) -> None:
    from pydicom.data import get_testdata_file

    tool = _tool("mppsscu")
    assert tool is not None
    path = get_testdata_file("CT_small.dcm", download=False)
    assert path is not None
    completed = subprocess.run(
        [tool, "-c", f"EXAMSEND@127.0.0.1:{listen.port}", str(path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stdout + completed.stderr
    found = rows(database, "SELECT state, source_uid FROM study_expectations")
    assert [r.state for r in found] == ["COMPLETED"], completed.stdout + completed.stderr + listen.text()
    instance = "1.3.6.1.4.1.5962.1.1.1.1.1.20040119072730.12322"
    assert {uid for _, uid in _expected(database)} == {instance}
