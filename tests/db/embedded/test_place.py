"""The directories of an embedded server: paths, permissions, directories that are refused."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from examsend.db import embedded
from examsend.errors import ConfigError
from tests.db.embedded.helpers import ROOT, Client, answers, data_directory, refusal


@pytest.mark.parametrize(
    "name",
    [
        "with space",
        "quo'te\"d",
        "per%cent",
        "comma,d",
        "x" * 120,
        "déjà-vu ☢",
        "do$llar`tick`",
        "back\\slash",
        "-dash",
        "a=b&c?d#e",
    ],
)
def test_any_path_works(place: Path, name: str) -> None:
    with embedded.running(place / name / "postgres", unsafe_fast=True) as url:
        assert answers(url)
        sockets = embedded.status(place / name / "postgres").socket_directory
        assert sockets is not None
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    assert not list(sockets.glob(".s.PGSQL*"))


def test_a_path_that_is_not_utf8_works(place: Path) -> None:
    directory = place / os.fsdecode(b"caf\xe9")
    with embedded.running(directory, unsafe_fast=True) as url:
        assert answers(url)


def test_a_line_break_in_a_path_is_refused(place: Path) -> None:
    with pytest.raises(ConfigError, match="the embedded database cannot use"), embedded.running(place / "two\nlines"):
        pass


def test_a_socket_directory_that_others_can_read_is_refused(place: Path) -> None:
    directory = place / ("x" * 120)
    with embedded.running(directory, unsafe_fast=True):
        sockets = embedded.status(directory).socket_directory
        assert sockets is not None
        assert not sockets.is_relative_to(place)
    assert not sockets.exists(), "the directory is removed"
    sockets.mkdir(mode=0o755)
    try:
        with pytest.raises(ConfigError, match="not a private directory"), embedded.running(directory):
            pass
    finally:
        sockets.rmdir()


@pytest.mark.parametrize("umask", [0o077, 0o000])
def test_the_umask_does_not_change_the_permissions(place: Path, client: Callable[..., Client], umask: int) -> None:
    directory = place / "new" / "below"
    one = client(directory, umask=umask)
    assert one.next_line() == "up"
    for path in (directory, data_directory(directory)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path
    assert stat.S_IMODE(directory.parent.stat().st_mode) == (0o711 if ROOT else 0o700)
    for path in (*directory.glob("*.lock"), directory / "server.log"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert one.leave() == 0


def test_a_directory_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "the embedded database cannot use" in refusal(ConfigError, tmp_path / "file" / "below")


def test_a_directory_that_every_user_can_write_is_refused(place: Path) -> None:
    with embedded.running(place, unsafe_fast=True):
        pass
    place.chmod(0o777)
    assert "can be written by every user" in refusal(ConfigError, place)


def test_status_starts_nothing(place: Path) -> None:
    assert embedded.status(place) == embedded.Status(running=False, pid=None, version=None, socket_directory=None)
    assert not place.exists()


def test_the_default_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert embedded.default_directory() == Path("/var/lib/examsend/postgres")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert embedded.default_directory() == Path("/data/examsend/postgres")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert embedded.default_directory() == Path("/home/somebody/.local/share/examsend/postgres")


def test_without_a_home_directory_the_error_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    with pytest.raises(ConfigError, match=r"no home directory .* set EXAMSEND_DATA_DIRECTORY"):
        embedded.default_directory()
