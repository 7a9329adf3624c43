"""A Storage SCP on loopback, which also commits itself to what it has (PS3.4 annex J). It runs in a child process, which ends
when its parent ends for any reason.

Every data set is stored as it was received. Its digest and its association are recorded.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examsend.dicom import uids
from examsend.dicom.digest import Digest

AET = "EXAMSEND-DEMO"
_RECORD = "received.jsonl"


@dataclass(frozen=True, slots=True)
class Stored:
    """One data set as it was received."""

    sop_instance_uid: str
    digest: str
    size: int
    """Bytes of the data set."""
    transfer_syntax_uid: str
    association: int


@dataclass(frozen=True, slots=True)
class Receiver:
    """A running receiver."""

    host: str
    port: int
    aet: str
    directory: Path

    def stored(self) -> list[Stored]:
        """Return the data sets received so far, in order."""
        return [Stored(**entry["stored"]) for entry in self._entries() if "stored" in entry]

    def associations(self) -> int:
        """Return the number of associations accepted so far."""
        return sum("association" in entry for entry in self._entries())

    def lose(self, sop_instance_uid: str) -> None:
        """Lose an instance, as archives do: its file is deleted."""
        (self.directory / f"{sop_instance_uid}.dcm").unlink()

    def _entries(self) -> list[dict[str, Any]]:
        record = self.directory / _RECORD
        return [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []


@contextmanager
def listening(directory: Path, *, keep: bool = True) -> Iterator[Receiver]:
    """Yield a receiver that stores into ``directory`` until the block ends (``keep`` False: it records and writes no files)."""
    directory.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "examsend.demo.receiver", str(directory), "keep" if keep else "drop"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            line = child.stdout.readline()
            if not line.strip().isdigit():
                raise RuntimeError("the receiver did not start")
            yield Receiver("127.0.0.1", int(line), AET, directory)
        finally:
            child.stdin.close()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()


def _serve(directory: Path, *, keep: bool) -> None:
    """Run the receiver in the child process until its standard input is closed, as it is when the parent ends."""
    import itertools
    import logging
    import socket

    from pydicom import Dataset
    from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, _config, evt

    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    # Also accepts private SOP Classes, and those that are newer than pynetdicom.
    _config.UNRESTRICTED_STORAGE_SERVICE = True
    numbers: dict[Any, int] = {}
    counter = itertools.count(1)
    with (directory / _RECORD).open("a", buffering=1) as record:

        def opened(event: Any) -> None:
            # Without this, each response waits 40 ms for the sender's delayed acknowledgement.
            event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def accepted(event: Any) -> None:
            numbers[event.assoc] = next(counter)
            record.write(json.dumps({"association": numbers[event.assoc]}) + "\n")

        def store(event: Any) -> int:
            data = event.request.DataSet.getvalue()
            uid = str(event.request.AffectedSOPInstanceUID)
            syntax = str(event.context.transfer_syntax)
            entry = Stored(uid, Digest(data).hexdigest(), len(data), syntax, numbers[event.assoc])
            if keep:
                (directory / f"{uid}.dcm").write_bytes(event.encoded_dataset())
            record.write(json.dumps({"stored": {n: getattr(entry, n) for n in Stored.__slots__}}) + "\n")
            return 0x0000

        def commit(event: Any) -> tuple[int, None]:
            asked = event.action_information
            there: list[Any] = []
            gone: list[Any] = []
            for item in asked.ReferencedSOPSequence:
                has = not keep or (directory / f"{item.ReferencedSOPInstanceUID}.dcm").is_file()
                if not has:
                    item.FailureReason = 0x0112
                (there if has else gone).append(item)
            report = Dataset()
            report.TransactionUID = asked.TransactionUID
            if there:
                report.ReferencedSOPSequence = there
            if gone:
                report.FailedSOPSequence = gone
            # Before the response: pynetdicom reads the association in this thread, and would take a later request for the answer.
            model, instance = uids.STORAGE_COMMITMENT_PUSH_MODEL, uids.STORAGE_COMMITMENT_INSTANCE
            event.assoc.send_n_event_report(report, 2 if gone else 1, model, instance)
            return 0x0000, None

        ae = AE(ae_title=AET)
        ae.maximum_pdu_size = 131072
        for context in AllStoragePresentationContexts:
            ae.add_supported_context(context.abstract_syntax, ALL_TRANSFER_SYNTAXES)
        ae.add_supported_context(uids.VERIFICATION)
        ae.add_supported_context(uids.STORAGE_COMMITMENT_PUSH_MODEL)
        handlers: list[Any] = [
            (evt.EVT_CONN_OPEN, opened),
            (evt.EVT_ACCEPTED, accepted),
            (evt.EVT_C_STORE, store),
            (evt.EVT_N_ACTION, commit),
        ]
        server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        assert server is not None
        sys.stdout.write(f"{server.server_address[1]}\n")
        sys.stdout.flush()
        sys.stdin.read()
        server.shutdown()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), keep=sys.argv[2] == "keep")
