"""``examsend systemd install`` and ``uninstall``, into an image and for a user."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from examsend.commands import systemd
from examsend.commands.systemd import Act, SystemdResult
from examsend.config.settings import Settings
from examsend.errors import ConfigError, Refused, UsageError

URL = "postgresql:///examsend?host=/run/postgresql"
Installed = Callable[..., SystemdResult]


@pytest.fixture(autouse=True)
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program that is called: no test depends on where that of the test run is."""
    path = tmp_path / "venv" / "bin" / "examsend"
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    monkeypatch.setattr(sys, "argv", [str(path)])
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.mkdir()
    return path


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands that would be run, except systemd-escape, which is."""
    run: list[str] = []
    real = systemd._output

    def output(*command: str) -> str:
        if command[0] == "systemd-escape":
            return real(*command)
        run.append(" ".join(command))
        return ""

    monkeypatch.setattr(systemd, "_output", output)
    return run


def _done(result: SystemdResult, act: Act) -> list[str]:
    return [Path(step.what).name for step in result.steps if step.act is act]


def test_the_units_name_the_program_by_its_absolute_path(image: Path, program: Path, commands: list[str]) -> None:
    systemd.install(Settings(database_url=URL), root=image)
    for path in (image / "etc/systemd/system").glob("examsend*.service"):
        text = path.read_text()
        assert "/usr/bin/env examsend" not in text
        assert f"{program} " in text


def test_a_link_to_the_program_leads_to_the_environment(
    tmp_path: Path, image: Path, program: Path, commands: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "examsend"
    link.symlink_to(program)
    monkeypatch.setattr(sys, "argv", [str(link)])
    systemd.install(Settings(database_url=URL), root=image)
    assert f"ExecStart={program} send" in (image / "etc/systemd/system/examsend-send.service").read_text()


def test_settings_and_the_url_are_written_once_for_root_and_the_group(image: Path, commands: list[str]) -> None:
    systemd.install(Settings(database_url=URL), root=image)
    secret, file = image / "etc/examsend/database_url", image / "etc/examsend/examsend.toml"
    assert secret.read_text() == URL + "\n"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (secret, file)] == [0o640, 0o640]
    assert tomllib.loads(file.read_text()) == {"database_url_file": "/etc/examsend/database_url"}
    file.write_text("settle = 7\n")
    again = systemd.install(Settings(database_url="postgresql:///other"), root=image)
    assert file.read_text() == "settle = 7\n"
    assert secret.read_text() == URL + "\n"
    assert any("names no database" in sentence for sentence in again.left)


def test_a_second_run_changes_nothing(image: Path, commands: list[str]) -> None:
    first = systemd.install(Settings(database_url=URL), root=image, drop_dirs=["/srv/drop"])
    assert len(_done(first, Act.WRITE)) > 15
    again = systemd.install(Settings(), root=image, drop_dirs=["/srv/drop"])
    assert _done(again, Act.WRITE) == []
    assert _done(again, Act.MAKE) == []


def test_a_unit_of_an_earlier_version_is_replaced_and_a_changed_one_is_kept(
    image: Path, program: Path, commands: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    systemd.install(Settings(database_url=URL), root=image)
    changed = image / "etc/systemd/system/examsend-send.timer"
    changed.write_text(changed.read_text().replace("OnUnitInactiveSec=5s", "OnUnitInactiveSec=1h"))
    newer = program.with_name("newer") / "examsend"
    newer.parent.mkdir()
    newer.write_text("")
    monkeypatch.setattr(sys, "argv", [str(newer)])
    result = systemd.install(Settings(), root=image)
    assert "examsend-send.service" in _done(result, Act.WRITE)
    assert "examsend-send.timer" in _done(result, Act.KEEP)
    assert "1h" in changed.read_text()


def test_uninstall_removes_what_was_written_and_keeps_changes_settings_and_masks(
    image: Path, commands: list[str]
) -> None:
    systemd.install(Settings(database_url=URL), root=image, drop_dirs=["/srv/drop"])
    units = image / "etc/systemd/system"
    (units / "examsend-send.timer").write_text("[Timer]\nOnCalendar=daily\n")
    (units / "examsend-prune.timer").unlink()
    (units / "examsend-prune.timer").symlink_to("/dev/null")
    (units / "other.service").write_text("[Service]\n")
    systemd.uninstall(root=image)
    assert {path.name for path in units.glob("*.*") if not path.is_dir()} == {
        "examsend-send.timer",
        "examsend-prune.timer",
        "other.service",
    }
    assert (image / "etc/examsend/examsend.toml").exists()
    assert (image / "srv/drop").is_dir()


@pytest.mark.parametrize("user", [False, True], ids=["system", "user"])
def test_a_dry_run_shows_all_and_changes_nothing(
    tmp_path: Path, image: Path, commands: list[str], user: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(image))
    secret = "postgresql://examsend:hunter2@db/examsend"
    where = {"user": True} if user else {"root": image}
    result = systemd.install(
        Settings(database_url=secret), drop_dirs=[str(tmp_path / "d") if user else "/srv/d"], dry_run=True, **where
    )  # type: ignore[arg-type]
    assert list(image.iterdir()) == []
    assert commands == []
    assert "examsend-send.service" in _done(result, Act.WRITE)
    assert "hunter2" not in repr(result)


def test_a_drop_directory_is_made_and_gets_path_and_timer(image: Path, commands: list[str]) -> None:
    systemd.install(Settings(database_url=URL), root=image, drop_dirs=["/srv/drop one", "/srv/$HOME-%n/"])
    assert (image / "srv/drop one").is_dir()
    enabled = next(command for command in commands if " enable " in command)
    for timer in ("finalize", "send", "confirm"):
        assert f"examsend-{timer}.timer" in enabled
    for name in (r"srv-drop\x20one", r"srv-\x24HOME\x2d\x25n"):
        assert f"examsend-ingest@{name}.path examsend-ingest@{name}.timer" in enabled


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("", "below /"),
        ("/", "below /"),
        ("/srv/..", "below /"),
        ("/tmp/drop", "a /tmp of their own"),
        ("/srv/a\nb", "control characters"),
        ("/srv/" + "x" * 250, "too long"),
    ],
)
def test_a_directory_that_units_cannot_serve_is_refused_before_anything_is_changed(
    image: Path, commands: list[str], given: str, sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        systemd.install(Settings(database_url=URL), root=image, drop_dirs=[given])
    assert list(image.iterdir()) == []


def test_without_a_url_nothing_is_installed(image: Path, commands: list[str]) -> None:
    with pytest.raises(ConfigError, match="--database-url"):
        systemd.install(Settings(), root=image)
    assert list(image.iterdir()) == []


def test_who_is_not_root_is_told_so(commands: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(Refused, match="only root"):
        systemd.install(Settings(database_url=URL))
    with pytest.raises(Refused, match="only root"):
        systemd.uninstall()
    assert commands == []


def test_units_of_a_user_have_what_a_users_manager_can_do(
    tmp_path: Path, commands: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(systemd._Work, "check_may", lambda _: None)
    systemd.install(Settings(database_url=URL), user=True)
    text = (tmp_path / "config/systemd/user/examsend-send.service").read_text()
    for absent in ("User=", "LoadCredential=", "PrivateTmp=", "ProtectSystem=", "network-online.target", "%d"):
        assert absent not in text
    for present in ("ExecStart=", "NoNewPrivileges=yes", "OnFailure=", "TimeoutStartSec=1h"):
        assert present in text
    assert "WantedBy=default.target" in (tmp_path / "config/systemd/user/examsend.target").read_text()
    secret = tmp_path / "config/examsend/database_url"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert tomllib.loads((secret.parent / "examsend.toml").read_text()) == {"database_url_file": str(secret)}
    assert all(command.startswith("systemctl --user ") for command in commands)
    systemd.uninstall(user=True)
    assert [path for path in (tmp_path / "config/systemd/user").iterdir() if path.is_file()] == []


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="needs systemd")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root installs")
def test_an_image_gets_user_directories_and_units_by_the_real_commands(tmp_path: Path) -> None:
    root = tmp_path / "image"
    (root / "etc").mkdir(parents=True)
    for file in ("passwd", "group"):
        shutil.copy(f"/etc/{file}", root / "etc" / file)
    (root / "usr/lib/systemd/system").mkdir(parents=True)
    names = [path.name for path in systemd.sources().glob("examsend*.*")]
    settings = Settings(database_url="postgresql://examsend:geheim@db/examsend")
    planned = systemd.install(settings, drop_dirs=["/srv/drop"], root=root, dry_run=True)
    assert not (root / "etc/systemd").exists()
    assert "geheim" not in str(planned)
    systemd.install(settings, drop_dirs=["/srv/drop"], root=root)
    units = root / "etc/systemd/system"
    assert {n for n in names if not (units / n).exists()} == set()
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
