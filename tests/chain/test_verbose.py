"""What ``-vv`` prints: no secret, and nothing of a peer that could control a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from examsend import senders
from examsend.config.settings import Settings
from examsend.demo import samples
from examsend.states import SenderName
from tests.helpers import cli
from tests.peers.scripted import Script, scripted


@pytest.mark.parametrize(
    "sender", [n for n in SenderName if 2 in senders.get(n, Settings()).capabilities.user_identity_kinds]
)
def test_no_passcode_and_no_escape_sequence(database_url: str, tmp_path: Path, sender: SenderName) -> None:
    secret = tmp_path / "secret"
    secret.write_text("open sesame")
    secret.chmod(0o600)
    samples.ct_study(tmp_path / "drop", 3, size=8)
    script = Script(status=lambda k, _uid: 0xC000 if k == 2 else 0, comment="\x1b]0;owned\x07\x1b[31mred")
    with scripted(script) as receiver:
        for words in (
            ("destination", "add", "pacs", receiver.address, "--quiet-period", "0", "--sender", sender.value,
             "--answer-timeout", "2",
             "--user-identity-kind", "2", "--user-identity-name", "user", "--user-identity-file", secret),
            ("ingest", tmp_path / "drop"),
            ("finalize",),
            ("send", "-vv"),
            ("status", "-vv"),
            ("destination", "echo", "pacs", "-vv"),
        ):  # fmt: skip
            done = cli(*words, url=database_url)
            said = done.stdout + done.stderr
            assert "Traceback" not in said
            assert "open sesame" not in said
            assert not set(said) & {"\x1b", "\x07"}
    assert receiver.user_information[0][0x58].endswith(b"open sesame")
    assert len(receiver.offered) >= 3
