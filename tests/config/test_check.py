"""``config check``: what is wrong is found, nothing is changed, and no database is made."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from examsend.commands import config
from examsend.commands.config import ConfigChecked, Level
from examsend.config.expiry import first_expiry
from examsend.config.settings import Explained, Settings, SettingsFile
from examsend.db import engine, facts
from examsend.demo.receiver import Receiver
from examsend.errors import ConfigError
from tests import certificates
from tests.helpers import add, execute


def _checked(settings: Settings, *files: SettingsFile, network: bool = False) -> ConfigChecked:
    return config.check(Explained(settings, {}, files), network=network)


def _wrong(checked: ConfigChecked) -> dict[str, str]:
    return {f.code: f"{f.level} {f.subject}: {f.sentence}" for f in checked.findings if f.level is not Level.OK}


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates.make(tmp_path_factory.mktemp("certificates"))


def test_all_is_well(settings: Settings, receiving: Receiver) -> None:
    add(settings, f"{receiving.aet}@127.0.0.1:{receiving.port}")
    checked = _checked(settings, network=True)
    assert _wrong(checked) == {}
    assert checked.exit_code == 0
    assert any("answers C-ECHO" in f.sentence for f in checked.findings)


def test_a_destination_that_does_not_answer_is_a_warning_and_a_disabled_one_is_not_asked(
    settings: Settings, database: engine.Database
) -> None:
    add(settings, "PACS@127.0.0.1:1", name="dead")
    add(settings, "PACS@127.0.0.1:2", name="off")
    execute(database, "UPDATE storage_backend_configs SET enabled = false WHERE name = 'off'")
    checked = _checked(settings, network=True)
    assert _wrong(checked).keys() == {"NO_ECHO"}
    assert "PACS@127.0.0.1:1 does not answer C-ECHO" in _wrong(checked)["NO_ECHO"]
    assert checked.exit_code == 1
    assert "NO_ECHO" not in _wrong(_checked(settings, network=False))


def test_a_time_out_that_the_lease_does_not_cover_is_a_problem(settings: Settings) -> None:
    add(settings, "PACS@127.0.0.1:1")
    checked = _checked(replace(settings, lease=60))
    assert "--answer-timeout 60 is longer than half the lease" in _wrong(checked)["TIMEOUT"]
    assert checked.exit_code == 78


def test_two_names_for_one_destination_are_found(settings: Settings) -> None:
    add(settings, "PACS@host.test:104", name="pacs")
    add(settings, "PACS@HOST.test.:104", name="other")
    add(settings, "A@10.0.0.1:104", name="PACS")
    found = [f.sentence for f in _checked(settings).findings if f.code == "RESEMBLES"]
    assert len(found) == 2
    assert any("same address" in one for one in found)
    assert any("upper and lower case" in one for one in found)


def test_files_of_a_destination_are_looked_at(settings: Settings, database: engine.Database, certified: Path) -> None:
    add(settings, "A@127.0.0.1:1", tls=True, tls_ca_file=str(certified / "ca.pem"))
    assert _wrong(_checked(settings)).keys() == {"EXPIRES"}  # in 30 days
    open_key = certified / "open.key"
    shutil.copy(certified / "client.key", open_key)
    open_key.chmod(0o644)
    for cert, key, code, said in (
        ("client.pem", "open.key", "FILE", "can be used by others too"),
        ("old.pem", "old.key", "EXPIRED", "expired on"),
        ("client.pem", "none.key", "FILE", "No such file or directory: it must be there"),
        ("ca.srl", "client.key", "CERTIFICATE", "holds no certificate"),
    ):
        execute(
            database,
            "UPDATE storage_backend_configs SET tls_cert_file = :cert, tls_key_file = :key",
            cert=str(certified / cert),
            key=str(certified / key),
        )
        assert said in _wrong(_checked(settings))[code], key


def test_a_secret_that_others_may_read_is_a_problem(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cr3t\n")
    secret.chmod(0o600)
    add(settings, "A@127.0.0.1:1", user_identity_kind=2, user_identity_name="n", user_identity_file=str(secret))
    assert _wrong(_checked(settings)).keys() == {"PLAIN_TEXT"}
    secret.chmod(0o604)
    checked = _checked(settings)
    assert "can be used by others too" in _wrong(checked)["FILE"]
    assert "s3cr3t" not in str(checked)


def test_a_credential_of_systemd_is_not_looked_at_in_a_shell(
    settings: Settings, database: engine.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(settings, "A@127.0.0.1:1", tls=True)
    execute(
        database,
        "UPDATE storage_backend_configs SET user_identity_kind = 2, user_identity_name = 'n',"
        " user_identity_file = '$CREDENTIALS_DIRECTORY/pass'",
    )
    assert _wrong(_checked(settings)) == {}
    assert "NOT_LOOKED_AT" in {f.code for f in _checked(settings).findings}
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert "pass cannot be read" in _wrong(_checked(settings))["FILE"]


def test_a_sender_whose_program_is_missing_is_a_problem(
    settings: Settings, database: engine.Database, tmp_path: Path
) -> None:
    add(settings, "A@127.0.0.1:1")
    execute(database, "UPDATE storage_backend_configs SET sender = 'dcmtk'")
    checked = _checked(replace(settings, dcmtk=tmp_path))
    assert str(tmp_path) in _wrong(checked)["SENDER"]
    assert checked.exit_code == 78


def test_a_program_that_cannot_be_run_is_a_problem(settings: Settings, tmp_path: Path) -> None:
    add(settings, "A@127.0.0.1:1")
    program = tmp_path / "tell"
    program.write_text("#!/bin/sh\n")
    for mode, code in ((0o644, "PROGRAM"), (0o777, "FILE_MODE"), (0o755, "")):
        program.chmod(mode)
        assert set(_wrong(_checked(replace(settings, on_held=(str(program), "x"))))) == {code} - {""}
    assert "No such file" in _wrong(_checked(replace(settings, on_back=(str(tmp_path / "none"),))))["PROGRAM"]


def test_the_tls_files_of_listen_are_looked_at(settings: Settings, certified: Path) -> None:
    add(settings, "A@127.0.0.1:1")
    alone = replace(settings, listen_tls_cert_file=str(certified / "server.pem"))
    assert "belong together" in _wrong(_checked(alone))["LISTEN_TLS"]
    both = replace(alone, listen_tls_key_file=str(certified / "server.key"))
    assert _wrong(_checked(both)).keys() == {"EXPIRES"}
    other = replace(alone, listen_tls_key_file=str(certified / "client.key"))
    assert "cannot be used" in _wrong(_checked(other))["FILE"]


def test_modes_of_the_settings_file_are_looked_at(settings: Settings, tmp_path: Path) -> None:
    add(settings, "A@127.0.0.1:1")
    file = tmp_path / "examsend.toml"
    file.write_text("database_url = 'postgresql://u:secret@h/d'\n")
    used = SettingsFile(str(file), "used")
    for mode, level in ((0o600, None), (0o640, None), (0o644, Level.WARNING), (0o602, Level.PROBLEM)):
        file.chmod(mode)
        wrong = _wrong(_checked(settings, used))
        assert bool(wrong) == (level is not None), oct(mode)
        if level is not None:
            assert wrong["FILE_MODE"].startswith(level)
    file.write_text("database_url = 'postgresql://u@h/d'\n")
    file.chmod(0o644)
    assert _wrong(_checked(settings, used)) == {}


def test_a_database_without_a_schema_is_a_problem_and_gets_none(empty_database_url: str) -> None:
    settings = Settings(database_url=empty_database_url, database_wait=1)
    for _ in range(2):
        checked = _checked(settings)
        assert "there is no schema yet: `examsend db upgrade`" in _wrong(checked)["SCHEMA"]
        assert checked.exit_code == 78


def test_a_database_that_cannot_be_reached_exits_69() -> None:
    checked = _checked(Settings(database_url="postgresql://u:secret@127.0.0.1:1/d", database_wait=0))
    assert _wrong(checked).keys() == {"DATABASE_UNREACHABLE"}
    assert checked.exit_code == 69
    assert "secret" not in str(checked)


def test_no_database_is_made(tmp_path: Path) -> None:
    checked = _checked(Settings(data_directory=tmp_path / "data"))
    assert _wrong(checked).keys() == {"NO_DATABASE"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fact", "code"),
    [
        (facts.Facts(13, 0, 0), "DATABASE_VERSION"),
        (facts.Facts(19, 0, 0), "DATABASE_VERSION"),
        (facts.Facts(18, 6, 0.5), "CLOCK_SKEW"),
        (facts.Facts(18, -6, 0.5), "CLOCK_SKEW"),
        (facts.Facts(18, 6, 2), ""),
    ],
)
def test_versions_and_clocks(settings: Settings, monkeypatch: pytest.MonkeyPatch, fact: facts.Facts, code: str) -> None:
    add(settings, "A@127.0.0.1:1")
    monkeypatch.setattr(facts, "facts", lambda _database: fact)
    assert set(_wrong(_checked(settings))) == {code} - {""}


def test_the_servers_facts_are_asked_for(database: engine.Database) -> None:
    found = facts.facts(database)
    assert str(found.major) == database.version().split(".")[0]
    assert abs(found.clock_ahead) <= found.unsure + 0.1


def test_the_expiry_read_from_a_certificate_is_that_of_openssl(certified: Path) -> None:
    for name in ("ca", "server", "old"):
        said = subprocess.run(
            ["openssl", "x509", "-noout", "-enddate", "-dateopt", "iso_8601", "-in", f"{name}.pem"],
            cwd=certified, capture_output=True, text=True, check=True, timeout=60,
        ).stdout  # fmt: skip
        assert said.strip() == f"notAfter={first_expiry(str(certified / f'{name}.pem')):%Y-%m-%d %H:%M:%SZ}"


def test_a_certificate_that_is_no_certificate_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.pem"
    for body in ("MAA=", "MIIB", "AAAA", "", "MIP/////", "!!!!"):
        file.write_text(f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
        with pytest.raises(ConfigError, match=r"cannot be read|no certificate"):
            first_expiry(str(file))
