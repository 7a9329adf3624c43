"""The commands of the README and the guide are typed word for word."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import receiver, samples
from tests.helpers import add, cli, deliver, one
from tests.peers import orthanc
from tests.peers.dcmtk import free_port
from tests.services.process import listening

TOP = Path(__file__).parents[1]


def test_the_readmes_five_lines_deliver_a_study(
    database_url: str, receiving: receiver.Receiver, tmp_path: Path
) -> None:
    readme = (TOP / "README.md").read_text()
    block = re.search(r"## A first real destination in five lines\n\n```sh\n(.*?)```", readme, re.DOTALL)
    assert block is not None
    lines = block[1].splitlines()
    assert len(lines) == 5
    drop = tmp_path / "drop"
    samples.ct_study(drop, 3, size=8)
    for file in drop.rglob("*.dcm"):
        os.utime(file, (1, 1))  # as files that were there before
    typed = (
        block[1]
        .replace("ARCHIVE@10.0.0.5:104", f"{receiving.aet}@{receiving.host}:{receiving.port}")
        .replace("/srv/drop", str(drop))
    )
    assert typed.count(str(drop)) == typed.count(str(receiving.port)) == 1
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "examsend").write_text(f'#!/bin/sh\nexec {sys.executable} -m examsend "$@"\n')
    (tmp_path / "bin" / "examsend").chmod(0o755)
    environment = {
        "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "EXAMSEND_DATABASE_URL": database_url, "PYTHONPATH": str(TOP), "HOME": str(tmp_path),
    }  # fmt: skip
    done = subprocess.run(
        ["/bin/sh", "-ec", typed], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SENT, 3 stored, 1 association" in done.stdout
    assert (
        " 3 stored, 100 % of 1 association" in cli("status", url=database_url).stdout
        or "3/3" in cli("status", "--state", "SENT", url=database_url).stdout
    )


def test_every_tried_block_of_the_guide_is_named() -> None:
    page = (TOP / "docs" / "installing.md").read_text()
    assert re.findall(r"<!-- tried: (\w+) -->\n```sh\n", page) == ["database", "install", "destination"]


@orthanc.needs_orthanc
@pytest.mark.orthanc
def test_an_archive_that_is_set_up_as_confirming_says_answers_each_of_its_commands(
    settings: Settings,
    database: engine.Database,
    database_url: str,
    orthanc_server: Callable[..., orthanc.Orthanc],
    tmp_path: Path,
) -> None:
    page = (TOP / "docs" / "confirming.md").read_text()
    block = re.search(r"```json\n(.*?)```", page, re.DOTALL)
    assert block is not None
    port = free_port()
    known = json.loads("{" + block[1].replace("10.0.0.9", "127.0.0.1").replace("11112", str(port)) + "}")
    archive = orthanc_server(**known, DicomAlwaysAllowFind=False)
    add(settings, archive.address, confirm_after_seconds=0.0)
    samples.ct_study(tmp_path / "drop", 3, size=8)
    deliver(settings, tmp_path / "drop")
    study = one(database, "SELECT study_instance_uid FROM exam_batches")
    sections = page[page.index("## Asking now") : page.index("## Letting sources go")]
    # What was SENT on the days that the page names is not what this test has sent.
    lines = [
        re.sub(r"--since \S+", "--since 1h", re.sub(r" --until \S+", "", line))
        for line in re.findall(r"^    examsend (confirm .*)$", sections, re.MULTILINE)
    ]
    lines += ["confirm --batch 4711 --by query --wait 60", "confirm --dry-run"]
    values = {"4711": "1", "1.2.840.113619.2.55.3": study, "list.csv": str(tmp_path / "list.csv")}
    assert cli("destination", "set", "pacs", "--confirm", "commitment", url=database_url).returncode == 0
    with listening(tmp_path / "listen", database_url, "--port", str(port), "--bind", "127.0.0.1") as listen:
        listen.wait_for("listening as")
        for line in lines:
            ran = cli(*(values.get(word, word) for word in line.split()), url=database_url)
            assert ran.returncode == 0, (line, ran.stdout, ran.stderr)
            assert "dry run" in ran.stdout or "asked about 1 batch, 3 instances" in ran.stdout, (line, ran.stdout)
    with (tmp_path / "list.csv").open() as stream:
        listed = list(csv.DictReader(stream))
    assert [(row["answer"], row["proof"]) for row in listed] == [("CONFIRMED", "LISTED")] * 3
