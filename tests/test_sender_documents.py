"""docs/senders.md and docs/transcoding.md, compared with the program."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from examsend.config.destination import DestinationSettings
from examsend.delivery import stop
from examsend.dicom import pixels, plugins, transcode, uids
from examsend.dimse import conversion
from examsend.errors import ConfigError
from examsend.queue import second_sender
from examsend.senders import dcm4che, dcmtk, external
from examsend.states import SenderName, Transcode
from examsend.transfer import Peer, Tls, UserIdentity
from tests.senders.harness import capabilities

DOCS = Path(__file__).parents[1] / "docs"
SENDERS = (DOCS / "senders.md").read_text()
TRANSCODING = (DOCS / "transcoding.md").read_text()
FLAT_SENDERS, FLAT_TRANSCODING = " ".join(SENDERS.split()), " ".join(TRANSCODING.split())

CHECKS: dict[SenderName, Callable[[Peer], object]] = {
    SenderName.DCM4CHE: dcm4che._check,
    SenderName.DCMTK: lambda peer: dcmtk._check(peer, (3, 6, 7)),
}
"""What of ``Sender.check`` concerns the settings, and needs no program."""


def _refuses(name: SenderName, **values: object) -> bool:
    try:
        CHECKS[name](Peer("archive.example", 104, "A", "B", **values))  # type: ignore[arg-type]
    except ConfigError:
        return True
    return False


def _rows(document: str, heading: str) -> list[list[str]]:
    """Return the cells of the table whose first heading is given."""
    table = document[document.index(f"| {heading} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table]


def test_each_sender_is_described() -> None:
    assert [row[0].split("`")[1] for row in _rows(SENDERS, "sender")] == list(SenderName)


@pytest.mark.parametrize(
    ("setting", "asked"),
    [
        ("`--priority`", {"priority": 1}),
        ("`--tls-pin`", {"tls": Tls(pin_sha256="00" * 32, check_name=False)}),
        ("the name in the certificate", {"tls": Tls()}),
        ("user identity with a passcode", {"user_identity": UserIdentity(2, "n", "/secret")}),
    ],
)
def test_what_a_program_refuses_is_in_the_table(setting: str, asked: dict[str, object]) -> None:
    [row] = [row for row in _rows(SENDERS, "setting") if row[0].startswith(setting)]
    refused = {"`--priority`": "refused", "`--tls-pin`": "refused"}.get(setting, "not checked|see `destination show`")
    for name, said in zip((SenderName.DCM4CHE, SenderName.DCMTK), row[2:], strict=True):
        assert _refuses(name, **asked) == any(word in said for word in refused.split("|")), (name, said)


def test_what_is_said_of_names_conversions_and_windows() -> None:
    assert _refuses(SenderName.DCM4CHE, tls=Tls(server_name="other.example"))
    assert not _refuses(SenderName.DCM4CHE, tls=Tls(server_name="archive.example"))
    assert not _refuses(SenderName.DCMTK, tls=Tls(check_name=False))
    assert {t for t in Transcode if not _refuses(SenderName.DCM4CHE, transcode=t)} == {
        Transcode.NEVER,
        Transcode.FALLBACK,
    }
    assert {t for t in Transcode if not _refuses(SenderName.DCMTK, transcode=t)} == {Transcode.NEVER}
    assert {n for n in SenderName if capabilities(n).async_window} == {SenderName.NATIVE, SenderName.DCM4CHE}
    assert {n for n in SenderName if not capabilities(n).stops_after_instance} == set(CHECKS)


def test_the_numbers_of_the_page_on_senders() -> None:
    assert f"at {external.SLOWEST // 1000} kB/s" in FLAT_SENDERS
    assert f"after {stop._ASKED_SECONDS:g} s at the latest" in FLAT_SENDERS
    assert second_sender.FIRST_AGAIN_SECONDS == 3600
    assert "for an hour after the last one" in FLAT_SENDERS
    assert f"--fallback-after {DestinationSettings.__dataclass_fields__['fallback_after'].default}\n" in SENDERS


def test_the_numbers_of_the_page_on_transcoding() -> None:
    assert f"as many as there are cores, at most {conversion._MOST_WORKERS}" in FLAT_TRANSCODING
    assert f"up to {conversion.MOST_WAITING >> 30} GiB of them" in FLAT_TRANSCODING
    assert (
        f"more than {-(-pixels.MAX_PIXELS >> 30)} GiB of pixels, more than {pixels.MAX_FRAME >> 30} GiB in a frame"
        in (FLAT_TRANSCODING)
    )
    assert f"of more than {transcode._MAX_ICON >> 20} MiB" in FLAT_TRANSCODING


_PACKAGES = {"": "no plug-in", "gdcm": "python-gdcm", "pyjpegls": "pyjpegls", "pylibjpeg": "pylibjpeg-openjpeg"}
"""Name of a plug-in -> what the page calls it."""


def _named(cell: str) -> set[str]:
    """Return the transfer syntaxes of a cell: a whole UID, or the end of one: ".57"."""
    found = set(re.findall(r"1\.2\.840\.10008[.\d]+\d", cell))
    return found | {
        f"1.2.840.10008.1.2.4{end}" for end in re.findall(r"(?<![\d.])(?:\.\.\.1\.2\.4)?(\.\d{2,3})\b", cell)
    }


def test_what_decodes_and_encodes_is_in_the_tables() -> None:
    said = {
        syntax: row[1].split(" (")[0]
        for row in _rows(TRANSCODING, "from")
        for syntax in _named(row[0])
        if syntax not in uids.NATIVE
    }
    assert said == {syntax: _PACKAGES[decoder.plugin] for syntax, decoder in plugins._DECODERS.items()}
    encoders = {syntax: row[1] for row in _rows(TRANSCODING, "target") for syntax in _named(row[0])}
    assert encoders.pop(uids.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN) == "Python's zlib"
    assert encoders == {syntax: _PACKAGES[plugin] for syntax, (plugin, _) in plugins._ENCODERS.items()}
    maybe = {s for row in _rows(TRANSCODING, "from") for part in row[0].split(", and ")[1:] for s in _named(part)}
    assert maybe == plugins.MAY_BE_LOSSY
