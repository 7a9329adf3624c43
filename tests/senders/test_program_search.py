"""Which program of the name storescu a sender takes, and how often it is asked what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from examsend.config.settings import Settings
from examsend.errors import ConfigError
from examsend.senders import dcm4che, dcmtk
from examsend.transfer import Peer

PEER = Peer("127.0.0.1", 104, "CALLED", "CALLING")
SENDERS: list[Any] = [dcmtk.DcmtkSender, dcm4che.Dcm4cheSender]


def program(directory: Path, text: str) -> Path:
    """Make a program storescu that writes to ``asked`` whenever it is started."""
    directory.mkdir()
    made = directory / "storescu"
    made.write_text(f"#!/bin/sh\necho >>{directory}/asked\n{text}\n")
    made.chmod(0o755)
    return made


def refusal(sender: Any, given: Path | None) -> str:
    """Return why a sender cannot be used."""
    with pytest.raises(ConfigError) as refused:
        sender(Settings(**{sender.name: given})).check(PEER)
    return str(refused.value)


@pytest.mark.parametrize("sender", SENDERS)
def test_a_program_that_hangs_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sender: Any) -> None:
    """`status` asks for each destination."""
    monkeypatch.setattr(dcmtk, "_VERSION_SECONDS", 0.5)
    monkeypatch.setattr(dcm4che, "_HELP_SECONDS", 0.5)
    given = program(tmp_path / "bin", "sleep 1000")
    for place in (given, given, given.parent):
        assert "within 0.5 s" in refusal(sender, place)
    assert (tmp_path / "bin" / "asked").read_text() == "\n"
    given.write_text("#!/bin/sh\necho other\n")
    assert "within" not in refusal(sender, given)


@pytest.mark.parametrize("sender", SENDERS)
def test_one_that_cannot_be_run_does_not_hide_the_next_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sender: Any
) -> None:
    broken = program(tmp_path / "a", "")
    broken.write_text("#!/does/not/exist\n")
    shown = "$dcmtk: storescu v3.6.7 2022-04-22 $" if sender is dcmtk.DcmtkSender else "\n".join(dcm4che._OPTIONS)
    program(tmp_path / "b", f"echo '{shown}'")
    monkeypatch.setenv("PATH", f"{tmp_path}/a:{tmp_path}/b:/usr/bin:/bin")
    sender(Settings()).check(PEER)


@pytest.mark.parametrize("sender", SENDERS)
def test_a_place_that_cannot_be_looked_into_is_a_wrong_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sender: Any
) -> None:
    """As a directory of another user, which the superuser of a test run can look into: a name that no file can have."""
    impossible = tmp_path / ("n" * 300)
    assert "there is none at" in refusal(sender, impossible)
    monkeypatch.setenv("PATH", str(impossible))
    assert "there is none on PATH" in refusal(sender, None)
