"""The user that the server runs as: root's server, an ordinary user's server, the environment."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from examsend.db import embedded
from examsend.errors import ConfigError
from tests.db.embedded.helpers import (
    AS_ORDINARY_USER,
    CLIENT,
    LINUX,
    Client,
    answers,
    as_root,
    as_server_user,
    data_directory,
    refusal,
    server_pid,
)


def test_environment_variables_of_the_client_do_not_change_the_server(
    place: Path, client: Callable[..., Client]
) -> None:
    variables = {
        "PGPORT": "9", "PGHOST": "/nowhere", "PGDATABASE": "x", "PGDATA": "/nowhere", "PGOPTIONS": "-c nonsense=1",
        "LC_ALL": "xx_XX.UTF-8", "LANG": "zz", "LANGUAGE": "de", "TZ": "Nowhere/City", "EXAMSEND_DATABASE_URL": "secret",
    }  # fmt: skip
    # The test is about the server. PGOPTIONS would also break the client's own connection: the URL does not set it.
    one = client(
        environment=variables,
        script="import os\n" + CLIENT.replace("connection =", "os.environ.pop('PGOPTIONS'); connection ="),
    )
    assert one.next_line() == "up"
    if LINUX:
        assert b"secret" not in Path(f"/proc/{server_pid(place)}/environ").read_bytes()
    assert one.leave() == 0


@as_root
def test_an_ordinary_users_server_belongs_to_that_user_also_after_root_used_it(
    home: Path, client: Callable[..., Client]
) -> None:
    directory = home / "share" / "postgres"
    one = client(directory, script=AS_ORDINARY_USER + CLIENT)
    message = one.next_line()
    if "no PostgreSQL binaries" in message:
        pytest.skip("an ordinary user can execute no PostgreSQL binaries here")
    assert message == "up"
    assert {p.stat().st_uid for p in directory.rglob("*")} == {65534}
    # Root joins that server, and leaves no files that its owner cannot use.
    with embedded.running(directory) as url:
        assert answers(url)
    assert one.leave() == 0
    with embedded.running(directory, unsafe_fast=True) as url:
        assert answers(url)
    assert {p.stat().st_uid for p in directory.rglob("*")} == {65534}
    again = client(directory, script=AS_ORDINARY_USER + CLIENT)
    assert again.next_line() == "up"
    assert again.leave() == 0


@as_root
def test_an_ordinary_user_cannot_use_another_users_server(place: Path, client: Callable[..., Client]) -> None:
    with embedded.running(place, unsafe_fast=True):
        one = client(script=AS_ORDINARY_USER + CLIENT)
        assert one.next_line().startswith("ConfigError the embedded database cannot use")
        place.chmod(0o755)
        other = client(script=AS_ORDINARY_USER + CLIENT)
        assert re.match(r"ConfigError .* belongs to user \d+", other.next_line())


@as_root
def test_the_servers_user_owns_all_files(place: Path) -> None:
    with embedded.running(place, unsafe_fast=True):
        owners = {p.stat().st_uid for p in (place, *place.rglob("*"))}
        assert owners == {as_server_user()["user"]}


@as_root
def test_a_directory_that_the_servers_user_cannot_enter_is_refused(place: Path) -> None:
    private = place.parent / "private"
    private.mkdir(mode=0o700)
    message = refusal(ConfigError, private / "data" / "postgres")
    assert f"who cannot enter {private}" in message
    assert list(private.iterdir()) == []
    assert stat.S_IMODE(private.stat().st_mode) == 0o700


@as_root
def test_only_an_empty_directory_of_root_changes_its_owner(place: Path) -> None:
    place.mkdir()
    with embedded.running(place, unsafe_fast=True) as url:
        assert answers(url)
    used = place.parent / "used"
    used.mkdir()
    (used / "passwd").write_text("")
    assert "belongs to user 0" in refusal(ConfigError, used)
    assert used.stat().st_uid == 0


@as_root
def test_symbolic_links_in_the_directory_do_not_make_root_write_elsewhere(place: Path) -> None:
    with embedded.running(place, unsafe_fast=True):
        data = data_directory(place)
    target = place.parent / "target"
    target.write_text("unchanged")
    for path in (data / "examsend.conf", place / "server.log", place / "clients.lock"):
        aside = path.with_suffix(".aside")
        path.rename(aside)
        path.symlink_to(target)
        with pytest.raises(ConfigError), embedded.running(place, unsafe_fast=True):
            pass
        path.unlink()
        aside.rename(path)
    assert target.read_text() == "unchanged"
    assert target.stat().st_uid == 0
    with embedded.running(place, unsafe_fast=True) as url:
        assert answers(url)
