"""Compares the tables of docs/conformance.md with the program."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from examsend import outcomes, senders
from examsend.config.destination import DestinationSettings
from examsend.config.settings import Settings
from examsend.confirmation import by_commitment, reports
from examsend.dicom import plugins, uids
from examsend.dicom.uids import STORAGE_COMMITMENT_INSTANCE, STORAGE_COMMITMENT_PUSH_MODEL
from examsend.dimse import commitment, contexts, implementation, query, refusal, requestor, tls, transaction
from examsend.dimse.proposed import ProposedContext
from examsend.senders.base import Capabilities
from examsend.services import service
from examsend.services.commitment import CommitmentReports
from examsend.services.mpps import PerformedSteps
from examsend.services.verification import Verification
from examsend.states import SenderName
from examsend.transfer import Peer, Tls

STATEMENT = (Path(__file__).parents[1] / "docs" / "conformance.md").read_text()


def _rows(head: str) -> list[list[str]]:
    """Given how the head of a table begins, return its rows as cells."""
    found = re.search(rf"^\| {re.escape(head)}.*\n\|[-|]+\n((?:\|.*\n)+)", STATEMENT, re.MULTILINE)
    assert found is not None, head
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in found[1].splitlines()]


def test_every_status_has_its_row() -> None:
    rows = {code: (name, outcome) for code, name, outcome in _rows("status |")}
    ranges = {code: row for code, row in rows.items() if not re.fullmatch("[0-9A-F]{4}", code)}
    assert rows.keys() - ranges.keys() == {f"{status:04X}" for status in outcomes._STATUSES}
    for status, row in outcomes._STATUSES.items():
        assert rows[f"{status:04X}"] == (row.name, row.outcome)
    for low, code in ((0xA7F1, "A7xx"), (0xA9F1, "A9xx"), (0xB0F1, "Bxxx"), (0xC0F1, "Cxxx"), (0x1234, "any other")):
        row = outcomes.meaning(low)
        assert ranges.pop(code) == (row.name, row.outcome)
    assert ranges == {}


@pytest.mark.parametrize("column", range(len(SenderName)), ids=list(SenderName))
def test_the_capabilities_are_those_of_each_sender(column: int) -> None:
    name = list(SenderName)[column]
    head = re.search(r"^\| \| (native .*) \|$", STATEMENT, re.MULTILINE)
    assert head is not None
    assert head[1].split(" | ") == list(SenderName)
    can = senders.get(name, Settings()).capabilities
    table = re.search(r"^\| \| native .*\n\|[-|]+\n((?:\|.*\n)+)", STATEMENT, re.MULTILINE)
    assert table is not None
    said = {
        cells[0]: cells[1 + column]
        for cells in ([c.strip() for c in line.strip("| ").split("|")] for line in table[1].splitlines())
    }
    shown: dict[str, str] = {}
    for field in dataclasses.fields(Capabilities):
        value = getattr(can, field.name)
        if isinstance(value, bool):
            shown[field.name.replace("_", " ")] = "yes" if value else "no"
        elif field.name != "notes":
            text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            shown[field.name.replace("_", " ")] = text
    assert said == shown


def test_sop_classes_and_transfer_syntaxes() -> None:
    classes = {row[1] for row in _rows("SOP class")} - {""}
    served = Verification.abstract_syntaxes | PerformedSteps.abstract_syntaxes | CommitmentReports.abstract_syntaxes
    assert classes == served | {query.STUDY_ROOT_FIND}
    converted = {row[1]: row[2] for row in _rows("transfer syntax")}
    assert converted == {uid: "yes" if uid in plugins.ENCODED else "no" for uid in plugins.DECODED}
    assert service.UNCOMPRESSED == (
        uids.EXPLICIT_VR_LITTLE_ENDIAN, uids.IMPLICIT_VR_LITTLE_ENDIAN, uids.EXPLICIT_VR_BIG_ENDIAN,
    )  # fmt: skip


def test_storage_commitment() -> None:
    assert {row[1] for row in _rows("SOP class")} >= {STORAGE_COMMITMENT_PUSH_MODEL}
    assert STORAGE_COMMITMENT_INSTANCE in STATEMENT
    assert CommitmentReports.transfer_syntaxes == service.UNCOMPRESSED
    asked = {int(code, 16): (name, what) for code, name, what in _rows("status of N-ACTION")}
    assert asked.keys() == by_commitment._NAMES.keys() | by_commitment._OF_ARCHIVE | {0}
    for status, (name, what) in asked.items():
        assert name == by_commitment._NAMES.get(status, name)
        of_archive = "as 0112" in what or "the archive is asked nothing more" in what
        assert of_archive == (status in by_commitment._OF_ARCHIVE), f"{status:04X}"
    assert f"({by_commitment.REPORT_SECONDS:g} s after the last report" in STATEMENT
    assert f"at most {by_commitment.REPORT_SECONDS * commitment._MOST_WAITS:g} s" in STATEMENT
    assert f"over {transaction.LONGEST_REPORT >> 20} MiB" in STATEMENT
    assert {1, 2, None} == reports._EVENTS
    default = DestinationSettings.__dataclass_fields__["confirm_instances"].default
    assert f"`--confirm-instances` ({default})" in STATEMENT


def test_the_statuses_with_which_reports_are_answered() -> None:
    answered = {int(row[0], 16) for row in _rows("status answered")}
    assert answered == {
        0, refusal.PROCESSING_FAILURE, refusal.NO_SUCH_EVENT, refusal.INVALID_ARGUMENT, refusal.NO_SUCH_CLASS, refusal.NOT_AUTHORIZED,
        refusal.UNRECOGNIZED_OPERATION, refusal.RESOURCE_LIMITATION,
    }  # fmt: skip


@pytest.mark.parametrize("scu", [True, False])
@pytest.mark.parametrize("scp", [True, False])
def test_archives_are_granted_the_roles_that_they_propose(scu: bool, scp: bool) -> None:
    served = CommitmentReports(None, None)  # type: ignore[arg-type]
    context = ProposedContext(1, STORAGE_COMMITMENT_PUSH_MODEL, service.UNCOMPRESSED, scu_role=scu, scp_role=scp)
    assert served.takes(context)
    assert served.roles(context) == (scu, scp)


def test_negotiation_and_cipher_suites() -> None:
    for value in (
        implementation.IMPLEMENTATION_CLASS_UID,
        implementation.IMPLEMENTATION_VERSION_NAME,
        str(Peer.__dataclass_fields__["max_pdu"].default),
        str(requestor.LONGEST_PDU),
        f"more than {contexts.MAX_CONTEXTS} presentation contexts",
    ):
        assert value in STATEMENT
    suites = {c["name"] for c in tls.context(Tls()).get_ciphers() if not c["name"].startswith("TLS_")}
    # Which of them a build of OpenSSL has differs a little.
    assert suites <= set(re.findall(r"^- ([A-Z0-9-]+)$", STATEMENT, re.MULTILINE))
    for name in ("connect_timeout", "accept_timeout", "answer_timeout", "stall_timeout"):
        default = DestinationSettings.__dataclass_fields__[name].default
        assert re.search(rf"`--{name.replace('_', '-')}` \({default:g} s", STATEMENT)
