"""The commands of the README and the guide are typed word for word."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from examsend.demo import receiver, samples
from tests.helpers import cli

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
