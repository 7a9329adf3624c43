"""The units in a machine that systemd has booted: a container over a copy-on-write view of this host's files.

The container sees nothing of the host's /tmp, mounts and network, and writes only to a file system in memory.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pydicom.data
import pytest

import examsend
from examsend.commands import systemd

HERE = Path(__file__).parent
TOP = HERE.parents[1]

_BOOT = """
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$WORK/layers"
mkdir "$WORK/layers/upper" "$WORK/layers/work" "$WORK/layers/top"
mount -t overlay overlay -o "lowerdir=/,upperdir=$WORK/layers/upper,workdir=$WORK/layers/work" "$WORK/layers/top"
top=$WORK/layers/top
: > "$top/etc/machine-id"
rm -rf "$top"/etc/examsend "$top"/etc/systemd/system/examsend* "$top/opt/examsend" "$top/opt/deps" "$top/var/log/journal"
mkdir -p "$top/opt" "$top/out"
cp -a "$WORK/examsend" "$top/opt/examsend"
chown -R 0:0 "$top/opt/examsend"
# The user examsend must be able to enter the directory of this Python.
at=$PYTHON
while [ "$at" != / ]; do chmod o+x "$top$at"; at=$(dirname "$at"); done
cp "$WORK/exam-test.service" "$WORK/exam-test.target" "$top/etc/systemd/system/"
exec systemd-nspawn --quiet -D "$top" --machine="$MACHINE" --private-network --register=no --keep-unit --console=pipe --tmpfs=/tmp \\
  --bind="$WORK/out:/out" --bind-ro="$DEPS:/opt/deps" -b systemd.unit=exam-test.target
"""

_TARGET = "[Unit]\nRequires=basic.target exam-test.service\nAfter=basic.target\nAllowIsolate=yes\n"
_SERVICE = "[Unit]\nAfter=basic.target dbus.service\nWants=dbus.service\n[Service]\nType=exec\nExecStart=/bin/bash /out/inside.sh\n"


def _environment(place: Path) -> dict[str, str]:
    """Make a virtual environment with this examsend, as it is installed from a wheel, for /opt/examsend of the machine."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = place / "lib" / version / "site-packages"
    packages.mkdir(parents=True)
    (place / "bin").mkdir()
    base = Path(sys.base_prefix)
    (place / "bin" / "python").symlink_to(base / "bin" / version)
    (place / "pyvenv.cfg").write_text(f"home = {base}/bin\ninclude-system-site-packages = false\n")
    script = place / "bin" / "examsend"
    script.write_text("#!/opt/examsend/bin/python\nfrom examsend.__main__ import main\nmain()\n")
    script.chmod(0o755)
    (packages / "dependencies.pth").write_text("/opt/deps\n")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(examsend.__file__).parent, packages / "examsend", ignore=ignored)
    shutil.copytree(systemd.sources(), packages / "examsend" / "_systemd", dirs_exist_ok=True)
    shutil.copytree(TOP / "migrations", packages / "examsend" / "_migrations", ignore=ignored, dirs_exist_ok=True)
    return {"PYTHON": str(base)}


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="cannot boot: only root can")
@pytest.mark.skipif(shutil.which("systemd-nspawn") is None, reason="needs systemd-nspawn")
@pytest.mark.skipif(shutil.which("storescp") is None, reason="needs DCMTK")
def test_the_units_move_a_study_from_a_drop_directory_to_a_receiver(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "study").mkdir(parents=True)
    (tmp_path / "layers").mkdir()
    tmp_path.chmod(0o755)
    for number, name in enumerate(("CT_small.dcm", "MR_small.dcm")):
        shutil.copy(pydicom.data.get_testdata_file(name) or "", out / "study" / f"{number}.dcm")
    shutil.copy(HERE / "inside.sh", out)
    guide = (TOP / "docs" / "installing.md").read_text()
    for name, commands in re.findall(r"<!-- tried: (\w+) -->\n```sh\n(.*?)```", guide, re.DOTALL):
        (out / f"guide-{name}").write_text(commands)
    (tmp_path / "exam-test.target").write_text(_TARGET)
    (tmp_path / "exam-test.service").write_text(_SERVICE)
    import sqlalchemy

    environment = os.environ | _environment(tmp_path / "examsend")
    environment |= {
        "WORK": str(tmp_path),
        "DEPS": str(Path(sqlalchemy.__file__).parents[1]),
        "MACHINE": f"examsend-{os.getpid()}",
    }
    sentinel = Path("/tmp") / f"examsend-sentinel-{os.getpid()}"
    sentinel.touch()
    os.utime(sentinel, (0, 0))
    try:
        done = subprocess.run(
            ["timeout", "--kill-after=10", "230", "unshare", "--mount", "bash", "-c", _BOOT],
            env=environment, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert sentinel.exists(), "the host's /tmp was tidied"
    finally:
        sentinel.unlink(missing_ok=True)
    if not (out / "began").exists():
        pytest.skip(f"cannot boot: {(done.stderr or done.stdout)[-300:].strip()}")

    def said(name: str) -> str:
        path = out / name
        return path.read_text().strip() if path.exists() else f"(no {name})"

    story = said("log")[-6000:] + "\n" + said("journal")[-6000:]
    assert (out / "ended").exists(), story
    assert (said("guide.code"), said("install.code"), said("add.code")) == ("0", "0", "0"), story
    assert "write" not in said("install.again")
    assert set(said("modes").splitlines()) == {
        "640 root examsend /etc/examsend/examsend.toml",
        "640 root examsend /etc/examsend/database_url",
        "2770 examsend examsend /srv/drop",
        "2770 examsend examsend /srv/drop one",
    }
    assert said("active").split() == ["active"] * 5
    assert said("sent") == "yes", story
    assert said("received") == "2"
    assert all(
        f"examsend-{name}" in said("timers")
        for name in ("finalize.timer", "send.timer", "confirm.timer", "ingest@srv-drop")
    )
    assert said("results").count("Result=success") == 3, said("results")
    assert said("echo") == "yes", story
    assert "examsend_" in said("metrics")
    assert (said("prune.code"), said("send_pacs.code")) == ("0", "0"), story
    assert said("confirm.code") == "0", story
    assert "cannot be asked" in said("confirm"), story
    assert said("confirm.writes") == "0", story
    alerts = said("alerts")
    assert alerts.count("examsend-send.service failed: exit-code, exit status 69") == 1, (
        "once an hour, and not swallowed: " + alerts
    )
    assert said("back") == "yes", "the timer goes on after failures: " + story
    assert said("active_after_stop") == ""
    assert said("active_after_start").split() == ["active"] * 2
    assert (said("uninstall.code"), said("files_after_uninstall"), said("active_after_uninstall")) == ("0", "", "")
    assert said("kept").split() == ["/etc/examsend/examsend.toml", "/etc/examsend/database_url"]
    journal = said("journal")
    assert "outcome=SENT" in journal, "a pass leaves its trail in the journal"
    assert "Starting examsend-send.service" not in journal, "and nothing else, each few seconds"
