"""Finding the PostgreSQL binaries, and copying them for the server's user."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest

from examsend.db import embedded
from examsend.db.embedded import binaries
from examsend.errors import ConfigError
from tests.db.embedded.helpers import answers, as_root, data_directory, on_linux, refusal, server_pid


def test_without_binaries_the_error_says_what_to_install(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "_candidates", lambda: iter([Path("/nowhere")]))
    monkeypatch.delenv("EXAMSEND_PG_BIN", raising=False)
    message = refusal(ConfigError, place)
    assert all(word in message for word in ("examsend[embedded]", "Debian's postgresql", "EXAMSEND_DATABASE_URL"))


def test_an_override_without_binaries_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXAMSEND_PG_BIN", "/nowhere")
    assert "EXAMSEND_PG_BIN is '/nowhere'" in refusal(ConfigError, place)


def test_data_of_another_major_version_are_refused_and_not_changed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with embedded.running(place, unsafe_fast=True):
        data = data_directory(place)
    data.rename(place / "pg9")
    monkeypatch.delenv("EXAMSEND_PG_BIN", raising=False)
    assert "created by PostgreSQL 9, and no binaries of that version" in refusal(ConfigError, place)
    monkeypatch.setenv("EXAMSEND_PG_BIN", str(embedded.find_binaries()))
    assert "was created by PostgreSQL 9" in refusal(ConfigError, place)
    assert [p.name for p in place.glob("pg*")] == ["pg9"]


@as_root
@on_linux
def test_binaries_that_the_servers_user_cannot_execute_are_copied_and_their_permissions_kept(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EXAMSEND_PG_BIN", raising=False)
    wheel = embedded.find_binaries()
    if "pginstall" not in wheel.parent.name:
        pytest.skip("the wheel is not installed")
    packages, package, install = wheel.parents[2], wheel.parents[1].name, wheel.parent.name
    private = place.parent / "venv"
    private.mkdir(mode=0o700)
    shutil.copytree(wheel.parent, private / package / install)
    shutil.copytree(packages / f"{package}.libs", private / f"{package}.libs")
    monkeypatch.setenv("EXAMSEND_PG_BIN", str(private / package / install / "bin"))
    executables = set()
    for _ in range(2):
        with embedded.running(place, unsafe_fast=True) as url:
            assert answers(url)
            executables.add(Path(f"/proc/{server_pid(place)}/exe").readlink())
    assert len(executables) == 1
    assert executables.pop().is_relative_to(place.parent / next(place.parent.glob("binaries-*")).name)
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert len(list(place.parent.glob("binaries-*"))) == 1
