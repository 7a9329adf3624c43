"""The units: systemd finds nothing wrong with them, they are hardened, and `systemd install` writes and removes them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from examsend.commands import systemd
from examsend.config.settings import Settings
from examsend.errors import ConfigError, UsageError
from tests.helpers import cli

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")

UNITS = Path(__file__).parents[2] / "systemd"
NAMES = sorted(path.name for path in UNITS.glob("examsend*.*"))
SERVICES = [name for name in NAMES if name.endswith(".service")]


def _instance(name: str) -> str:
    return name.replace("@.", "@srv-drop." if "ingest" in name else "@pacs.")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The units with the path of a program that is there, as an installation writes them."""
    place = tmp_path_factory.mktemp("units")
    for name in NAMES:
        text = (UNITS / name).read_text().replace("/usr/bin/env examsend", "/bin/true")
        (place / name).write_text(text)
        if "@." in name:
            (place / _instance(name)).symlink_to(place / name)
    return place


@needs_systemd
def test_systemd_finds_nothing_wrong_with_any_unit(written: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=one", *(str(written / _instance(n)) for n in NAMES)],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{written}:"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    ours = [line for line in done.stderr.splitlines() if "examsend" in line]
    assert (done.returncode, ours) == (0, []), done.stderr


@needs_systemd
@pytest.mark.parametrize("name", SERVICES)
def test_each_service_is_hardened(written: Path, name: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(written / _instance(name))],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-500:] + done.stderr


@pytest.mark.parametrize("name", [n for n in SERVICES if n != "examsend-alert@.service"])
def test_no_failure_of_a_pass_is_swallowed(name: str) -> None:
    text = (UNITS / name).read_text()
    success = re.findall(r"^SuccessExitStatus=(.*)$", text, re.MULTILINE)
    assert not {"1", "69", "70", "78"} & {code for line in success for code in line.split()}
    assert "OnFailure=examsend-alert@%n.service" in text or name == "examsend-listen.service"
    assert re.search(r"^User=examsend$", text, re.MULTILINE)


@pytest.mark.parametrize("name", [n for n in NAMES if n.endswith(".timer")])
def test_a_timer_counts_from_the_end_of_a_pass(name: str) -> None:
    text = (UNITS / name).read_text()
    assert "OnUnitInactiveSec=" in text or "OnCalendar=" in text
    assert "AccuracySec=" in text or "prune" in name
    assert re.search(r"On(Active|Boot)Sec=|OnCalendar=", text), "something must start it the first time"


@needs_systemd
@pytest.mark.skipif(os.geteuid() != 0, reason="only root installs")
def test_install_writes_into_an_image_twice_the_same_and_uninstall_takes_it_away(tmp_path: Path) -> None:
    root = tmp_path / "image"
    (root / "etc").mkdir(parents=True)
    for file in ("passwd", "group"):
        shutil.copy(f"/etc/{file}", root / "etc" / file)
    (root / "usr/lib/systemd/system").mkdir(parents=True)
    settings = Settings(database_url="postgresql://examsend:geheim@db/examsend")
    planned = systemd.install(settings, drop_dirs=["/srv/drop"], root=root, dry_run=True)
    assert not (root / "etc/systemd").exists()
    assert "geheim" not in str(planned)
    systemd.install(settings, drop_dirs=["/srv/drop"], root=root)
    units = root / "etc/systemd/system"
    assert {n for n in NAMES if not (units / n).exists()} == set()
    assert "/usr/bin/env" not in (units / "examsend-send.service").read_text()
    assert (root / "etc/examsend/database_url").stat().st_mode & 0o007 == 0
    assert "geheim" in (root / "etc/examsend/database_url").read_text()
    again = systemd.install(Settings(), drop_dirs=["/srv/drop"], root=root)
    assert [s for s in again.steps if s.act is systemd.Act.WRITE] == []
    (units / "examsend-prune.service").write_text("[Service]\nExecStart=/bin/true\n")
    left = systemd.uninstall(root=root)
    assert sorted(p.name for p in units.glob("examsend*")) == ["examsend-prune.service"], "a changed file is kept"
    assert any("kept" in line for line in left.left)
    assert (root / "etc/examsend/examsend.toml").exists()


def test_install_needs_a_database_by_url_and_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="units need a PostgreSQL"):
        systemd.install(Settings(), root=tmp_path, dry_run=True)
    with pytest.raises(UsageError, match="below /"):
        systemd.install(Settings(database_url="postgresql:///x"), drop_dirs=[""], root=tmp_path, dry_run=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may install")
def test_an_ordinary_user_is_told_what_to_do(database_url: str) -> None:
    done = cli("systemd", "install", url=database_url)
    assert done.returncode in {1, 78}
    assert "root" in done.stderr
