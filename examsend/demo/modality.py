"""A modality: says by MPPS which images its step has made (PS3.4 F.7), to the service of ``examsend listen`` on loopback."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from examsend.config.settings import Settings
from examsend.demo.samples import element, element_item
from examsend.dicom.identity import DicomFile
from examsend.dicom.uids import EXPLICIT_VR_LITTLE_ENDIAN, MODALITY_PERFORMED_PROCEDURE_STEP
from examsend.dimse import messages
from examsend.dimse.acceptor import Limits
from examsend.dimse.contexts import Proposal
from examsend.dimse.ended import Ended
from examsend.dimse.requestor import Requestor
from examsend.queue import commitment
from examsend.services.admission import Admission, Titles
from examsend.services.commitment import CommitmentReports
from examsend.services.lasting import LastingDatabase
from examsend.services.mpps import PerformedSteps
from examsend.services.port import STOP_SECONDS, Port
from examsend.services.service import Service
from examsend.services.sockets import listening_on
from examsend.services.verification import Verification
from examsend.transfer import End, Peer

_HOST = "127.0.0.1"
_SECONDS = 10.0
"""For the answer to a message."""

_N_SET, _N_CREATE = 0x0120, 0x0140
"""Command Fields (PS3.7 annex E.1)."""
_SOP_CLASS = {_N_SET: 0x0003, _N_CREATE: 0x0002}
_SOP_INSTANCE = {_N_SET: 0x1001, _N_CREATE: 0x1000}
"""An N-SET names the requested SOP Class and instance, an N-CREATE the affected ones (PS3.7 10.3.3, 10.3.5)."""

_ROOM = 16376
"""Bytes of a presentation data value, as examsend accepts them."""


@contextmanager
def listening(settings: Settings, port: int = 0, host: str | None = _HOST) -> Iterator[Peer]:
    """Yield the address of a port that takes performed procedure steps and the reports of archives, as ``examsend listen`` does,
    until the block ends. ``port``: 0 is a free one. ``host``: None is every address of this host."""
    listener = listening_on(port, host)
    database = LastingDatabase(settings)
    services: list[Service] = [
        Verification(),
        PerformedSteps(database),
        CommitmentReports(database, commitment.take_report),
    ]
    admission = Admission(services, Titles(settings.listen_aet, database))
    served = Port([listener], admission, most=settings.listen_associations, limits=Limits())
    over = threading.Event()
    thread = threading.Thread(target=served.run, args=(over.is_set, 0.0), name="listen")
    thread.start()
    try:
        yield Peer(_HOST, listener.getsockname()[1], settings.listen_aet, "DEMO-CT", answer_timeout=_SECONDS)
    finally:
        over.set()
        thread.join(STOP_SECONDS + 5)
        database.close()
        listener.close()


def begin(peer: Peer, step: str, study: str) -> None:
    """Say that a step for a study is IN PROGRESS: N-CREATE. Raises RuntimeError for another answer than success."""
    scheduled = element(0x00400270, "SQ", element_item(element(0x0020000D, "UI", study)))
    data = element(0x00400252, "CS", "IN PROGRESS") + scheduled + element(0x00400340, "SQ", b"")
    _ask(peer, _N_CREATE, step, data)


def complete(peer: Peer, step: str, images: Sequence[DicomFile]) -> None:
    """Say that a step is COMPLETED and has made these images of one series: N-SET. Raises RuntimeError as ``begin`` does."""
    references = b"".join(
        element_item(element(0x00081150, "UI", i.sop_class_uid) + element(0x00081155, "UI", i.sop_instance_uid))
        for i in images
    )
    series = element(0x00081140, "SQ", references) + element(0x0020000E, "UI", images[0].series_instance_uid)
    data = element(0x00400252, "CS", "COMPLETED") + element(0x00400340, "SQ", element_item(series))
    _ask(peer, _N_SET, step, data)


def _ask(peer: Peer, command: int, step: str, data: bytes) -> None:
    """Send one request about a step, over an association of its own."""
    requestor = Requestor(peer, lambda: None)
    last_pdu = messages.ABORT
    try:
        requestor.open([Proposal(1, MODALITY_PERFORMED_PROCEDURE_STEP, EXPLICIT_VR_LITTLE_ENDIAN)])
        if not requestor.accepted.contexts:
            raise Ended(End.NO_CONTEXT, "MPPS is not accepted", abort=True)
        requestor.send(messages.message_pieces(_request(command, step), data, 1, _ROOM))
        status = _status(requestor, command | 0x8000)
        last_pdu = messages.ABORT if requestor.release() else b""
    except Ended as ended:
        last_pdu = ended.last_pdu
        raise RuntimeError(f"the step was not taken: {ended.sentence}") from None
    finally:
        requestor.close(last_pdu)
    if status != 0:
        raise RuntimeError(f"the step was answered with status {status:04X}")


def _request(command: int, step: str) -> bytes:
    """Return the command set of a request with a data set."""
    uids = ((_SOP_CLASS[command], MODALITY_PERFORMED_PROCEDURE_STEP), (_SOP_INSTANCE[command], step))
    class_uid, step_uid = (messages.element_of(tag, u.encode() + b"\0" * (len(u) % 2)) for tag, u in uids)
    fields = ((0x0100, command), (0x0110, 1), (0x0800, 1))
    return messages.command_set(
        class_uid, *(messages.element_of(tag, struct.pack("<H", value)) for tag, value in fields), step_uid
    )


def _status(requestor: Requestor, response: int) -> int:
    """Wait for the response; return its status. Raises Ended."""
    reader = messages.ResponseReader(response)
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        for found in reader.feed(requestor.data(deadline=deadline) or b""):
            return found.status
    raise Ended(End.TIMED_OUT, f"no answer within {_SECONDS:g} s", abort=True)
