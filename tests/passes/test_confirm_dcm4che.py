"""``confirm`` with dcm4che's dcmqrscp, where it is present: reports on the same association, and on a new one to ``listen``."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from examsend.commands import confirm, send
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import samples
from tests.helpers import add, deliver, rows
from tests.peers.archiving import COMMITMENT, FIND
from tests.peers.dcmtk import free_port, stop, wait_until_listening
from tests.services.process import listening

_PROGRAM = Path(os.environ.get("EXAMSEND_DCM4CHE", "/nowhere")) / "dcmqrscp"

pytestmark = pytest.mark.skipif(not _PROGRAM.exists(), reason="needs dcm4che's dcmqrscp (EXAMSEND_DCM4CHE)")


CT = "1.2.840.10008.5.1.4.1.1.2"


def _classes(directory: Path, name: str, *uids: str) -> Path:
    """Write which SOP Classes it takes, in the uncompressed transfer syntaxes."""
    path = directory / f"{name}.properties"
    path.write_text("".join(f"{uid}=1.2.840.10008.1.2,1.2.840.10008.1.2.1\n" for uid in uids))
    return path


@contextmanager
def _archive(directory: Path, reports_to: int, *options: str) -> Iterator[str]:
    """Yield the address of a dcmqrscp. It commits itself to what its DICOMDIR lists, whether the files are there or not."""
    directory.mkdir()
    port = free_port()
    known = directory / "ae.properties"
    known.write_text(f"EXAMSEND=127.0.0.1:{reports_to}\n")
    media = directory / "media"
    media.mkdir()
    command = [
        str(_PROGRAM), "-b", f"QRSCP@127.0.0.1:{port}", "--dicomdir", str(media / "DICOMDIR"), "--ae-config", str(known),
        "--storage-sop-classes", str(_classes(directory, "storage", CT, COMMITMENT)),
        "--query-sop-classes", str(_classes(directory, "query", FIND)), "--no-retrieve",
        *options,
    ]  # fmt: skip
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_until_listening(port, process)
            yield f"QRSCP@127.0.0.1:{port}"
        finally:
            stop(process)


@pytest.mark.parametrize("how", ["same association", "new association", "query"])
def test_dcmqrscp_confirms_what_it_lists(
    settings: Settings, database: engine.Database, database_url: str, tmp_path: Path, how: str
) -> None:
    samples.ct_study(tmp_path / "drop", 3, size=16)
    options = ("--stgcmt-same-assoc",) if how == "same association" else ()
    with (
        listening(tmp_path / "listen", database_url) as listen,
        _archive(tmp_path / "archive", listen.port, *options) as address,
    ):
        add(
            settings,
            address,
            confirm="query" if how == "query" else "commitment",
            confirm_after_seconds=0.0,
            confirm_backoff_seconds=0.5,
            confirm_backoff_max_seconds=1.0,
        )
        deliver(settings, tmp_path / "drop")
        _until(settings, database, ["CONFIRMED"], tmp_path / "archive" / "log")
        proof = "LISTED" if how == "query" else "COMMITTED"
        assert rows(database, "SELECT DISTINCT proof FROM instance_confirmations") == [(proof,)]


def _until(settings: Settings, database: engine.Database, wanted: list[str], log: Path) -> None:
    over = time.monotonic() + 30
    while (states := [r[0] for r in rows(database, "SELECT state FROM batch_confirmations ORDER BY 1")]) != wanted:
        assert time.monotonic() < over, (states, log.read_text()[-3000:])
        confirm.run(settings)
        send.run(settings)
        time.sleep(0.2)
