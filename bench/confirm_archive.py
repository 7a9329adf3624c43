"""A lean archive for bench.confirm: it commits to everything and lists everything, so that it costs little of what is measured."""

from __future__ import annotations

import socket
import struct
import sys
import threading

from examsend.dicom.elements import VALUE, walk
from examsend.dicom.source import MemorySource
from examsend.dicom.uids import STORAGE_COMMITMENT_INSTANCE, STORAGE_COMMITMENT_PUSH_MODEL
from examsend.dimse import inbound, messages, proposed, wire
from examsend.dimse.ended import Ended
from examsend.dimse.inbound import Reply
from examsend.dimse.messages import element_of, number
from examsend.dimse.proposed import Granted

_IMPLICIT = "1.2.840.10008.1.2"
_N_ACTION, _C_FIND, _REPORT = 0x0130, 0x0020, 0x0100
_ROOM = 16376


def _uid(uid: str) -> bytes:
    return uid.encode() + b"\0" * (len(uid) % 2)


def _value(tag: int, text: str, pad: bytes = b"\0") -> bytes:
    value = text.encode() + pad * (len(text) % 2)
    return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(value)) + value


def _is_response(body: bytes) -> bool:
    """Whether a P-DATA-TF is the answer to a report: one value, all of a command set."""
    _, control, value = next(messages.each_value(body))
    return control == messages.COMMAND | messages.LAST and bool(
        (number(messages.decode_fields(bytes(value)), 0x0100) or 0) & 0x8000
    )


class _Association:
    def __init__(self, made: socket.socket, instances: int) -> None:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setblocking(False)
        self._wire = wire.Wire(made, 60, lambda: None)
        self._instances = instances

    def _send(self, pieces: list[bytes]) -> None:
        self._wire.send(pieces, lambda _n: None)

    def run(self) -> None:
        kind, body = self._pdu()
        assert kind == 1
        asked = proposed.decode(body)
        contexts = {c.context_id: _IMPLICIT for c in asked.contexts if _IMPLICIT in c.transfer_syntaxes}
        self._send([proposed.acceptance(body, asked, Granted(contexts), 1 << 16)])
        reader = inbound.RequestReader({c.context_id: c for c in asked.contexts}, contexts, 1 << 24)
        while True:
            while (found := reader.request()) is None:
                kind, body = self._pdu()
                if kind == messages.A_RELEASE_RQ:
                    self._send([messages.RELEASE_RP])
                    return
                if kind != messages.P_DATA_TF:
                    return
                if not _is_response(body):
                    reader.feed(body)
            if found.command == _N_ACTION:
                self._commit(found)
            elif found.command == _C_FIND:
                self._find(found)

    def _pdu(self) -> tuple[int, bytes]:
        found = self._wire.pdu(limit=1 << 24)
        assert found is not None
        return found

    def _commit(self, request: inbound.Request) -> None:
        answer = messages.command_pieces(inbound.response(request, Reply(0)), request.context_id, _ROOM)
        command = messages.command_set(
            element_of(0x0002, _uid(STORAGE_COMMITMENT_PUSH_MODEL)),
            element_of(0x0100, struct.pack("<H", _REPORT)),
            element_of(0x0110, struct.pack("<H", request.message_id)),
            element_of(0x0800, b"\x01\x00"),
            element_of(0x1000, _uid(STORAGE_COMMITMENT_INSTANCE)),
            element_of(0x1002, b"\x01\x00"),
        )
        # What was asked for, said again, is the report of success (PS3.4 Tables J.3-1 and J.3-2).
        self._send(answer)
        self._send(messages.message_pieces(command, request.data or b"", request.context_id, _ROOM))

    def _find(self, request: inbound.Request) -> None:
        source = MemorySource(request.data or b"")
        keys = {
            tag: source.at(begin, length).decode().strip("\0 ")
            for kind, depth, tag, _, _, begin, length in walk(source, explicit=False, little=True)
            if kind == VALUE and depth == 0
        }
        study, level = keys[0x0020000D], keys[0x00080052]
        series = f"{study}.0"
        if level == "STUDY":
            matches = [_value(0x0020000D, study) + _value(0x00201208, str(self._instances), b" ")]
        elif level == "SERIES":
            matches = [
                _value(0x0020000D, study) + _value(0x0020000E, series) + _value(0x00201209, str(self._instances), b" ")
            ]
        else:
            matches = [
                _value(0x00080018, f"{series}.{k}") + _value(0x0020000D, study) + _value(0x0020000E, series)
                for k in range(self._instances)
            ]
        pieces: list[bytes] = []
        for match in matches:
            pieces += messages.message_pieces(_find_response(request, 0xFF00), match, request.context_id, _ROOM)
        last = messages.command_pieces(_find_response(request, 0), request.context_id, _ROOM)
        self._send(pieces + last)


def _find_response(request: inbound.Request, status: int) -> bytes:
    """Return the command set of a C-FIND-RSP."""
    return messages.command_set(
        element_of(0x0100, b"\x20\x80"),
        element_of(0x0120, struct.pack("<H", request.message_id)),
        element_of(0x0800, b"\x01\x00" if status else b"\x01\x01"),
        element_of(0x0900, struct.pack("<H", status)),
    )


def main() -> None:
    """Serve until standard input is closed. Argument: instances of each study."""
    listener = socket.create_server(("127.0.0.1", 0))
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()

    def serve(made: socket.socket) -> None:
        with made:
            try:
                _Association(made, int(sys.argv[1])).run()
            except Ended:
                return

    def accept() -> None:
        while True:
            made, _ = listener.accept()
            threading.Thread(target=serve, args=(made,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
