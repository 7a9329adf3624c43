"""The units are valid, hardened, and say what they should."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from examsend.commands import systemd

UNITS = sorted(path for path in systemd.sources().glob("examsend*.*"))
SERVICES = [path for path in UNITS if path.suffix == ".service"]

needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


def _instances(target: Path, *, user: bool = False) -> list[str]:
    """Copy the units; a template becomes an instance. Return the file names."""
    for path in UNITS:
        text = path.read_text()
        name = path.name.replace("@.", "@x.")
        (target / name).write_text(systemd.for_user(text) if user else text)
    return sorted(f"./{path.name}" for path in target.iterdir())


def _run(target: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"XDG_RUNTIME_DIR": str(target.parent)}
    return subprocess.run(command, cwd=target, env=environment, capture_output=True, text=True, timeout=60, check=False)


@needs_analyze
@pytest.mark.parametrize("user", [False, True], ids=["system", "user"])
def test_each_unit_is_valid(tmp_path: Path, user: bool) -> None:
    names = _instances(tmp_path, user=user)
    manager = ["--user"] if user else []
    done = _run(tmp_path, "systemd-analyze", *manager, "verify", "--man=no", "--recursive-errors=one", *names)
    assert (done.returncode, done.stderr) == (0, "")


@needs_analyze
def test_an_unknown_key_is_not_valid(tmp_path: Path) -> None:
    names = _instances(tmp_path)
    path = tmp_path / "examsend-send.service"
    path.write_text(path.read_text().replace("TimeoutStartSec=", "TimeoutBeginSec="))
    done = _run(tmp_path, "systemd-analyze", "verify", "--man=no", "--recursive-errors=one", *names)
    assert done.returncode != 0


@needs_analyze
@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_each_service_is_hardened(tmp_path: Path, path: Path) -> None:
    _instances(tmp_path)
    name = f"./{path.name.replace('@.', '@x.')}"
    done = _run(tmp_path, "systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", name)
    assert done.returncode == 0, done.stdout


def test_the_services_have_one_sandbox_and_each_relaxed_line_has_its_reason() -> None:
    blocks = {
        path.name: path.read_text().partition("# What the process may do.")[2].splitlines()[1:] for path in SERVICES
    }
    everywhere = set.intersection(*(set(lines) for lines in blocks.values()))
    for name, lines in blocks.items():
        for before, line in zip(["", *lines], lines, strict=False):
            own = line and not line.startswith("#") and line not in everywhere
            relaxed = re.match(
                r"(ProtectHome=read-only|RestrictAddressFamilies=|MemoryDenyWriteExecute=no|MemoryMax)", line
            )
            if relaxed:
                assert before.startswith("#"), f"{name}: {line} without its reason"
            elif own:
                assert line in {"MemoryDenyWriteExecute=yes", "TasksMax=512"}, f"{name}: {line}"
    assert {name for name, lines in blocks.items() if "MemoryDenyWriteExecute=no" in lines} == {
        "examsend-send.service",
        "examsend-send@.service",
    }


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_a_failure_is_not_swallowed_and_does_not_end_the_timer(path: Path) -> None:
    text = path.read_text()
    assert "\nStartLimitIntervalSec=0\n" in text
    if path.name == "examsend-alert@.service":
        assert "\nOnFailure" not in text
        return
    assert "\nOnFailure=examsend-alert@%n.service\n" in text
    swallowed = re.findall(r"^SuccessExitStatus=(.*)$", text, re.MULTILINE)
    assert swallowed in ([], ["143 SIGTERM"])


def test_everything_that_runs_by_itself_is_part_of_the_target() -> None:
    for path in UNITS:
        if path.name not in {"examsend.target", "examsend-alert@.service"}:
            assert "\nPartOf=examsend.target\n" in path.read_text(), path.name
        if path.suffix in {".timer", ".path", ".socket"}:
            assert "\nWantedBy=examsend.target\n" in path.read_text(), path.name


@pytest.mark.parametrize("name", ["send", "send@", "confirm", "prune"])
def test_a_pass_ends_by_itself_before_systemd_ends_it(name: str) -> None:
    text = (systemd.sources() / f"examsend-{name}.service").read_text()
    begun = re.search(r"^ExecStart=.* examsend \w+ -q .*--max-runtime (\d+)", text, re.MULTILINE)
    assert begun is not None
    assert "\nTimeoutStartSec=1h\n" in text
    assert int(begun[1]) + 600 <= 3600


def test_a_timer_starts_the_first_pass_too() -> None:
    for path in UNITS:
        text = path.read_text()
        if "OnUnitInactiveSec" in text:
            assert "OnActiveSec" in text, path.name


def test_the_code_of_the_condition_is_none_that_counts_as_success() -> None:
    """systemd takes such a code of ExecCondition for a yes: an alert each minute."""
    text = (systemd.sources() / "examsend-alert@.service").read_text()
    skipped = re.search(r"ExecCondition=.*exit (\d+)", text)
    success = re.search(r"^SuccessExitStatus=(.*)$", text, re.MULTILINE)
    assert skipped is not None
    assert success is not None
    assert skipped[1] not in success[1].split()
