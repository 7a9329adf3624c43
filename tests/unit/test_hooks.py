"""A program of the settings has its facts and its time, and cannot keep the pass: it may hang, fork, flood, fail or be missing."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from examsend.delivery import hooks


def _run(script: str, seconds: float = 20, **facts: object) -> str | None:
    return hooks.run("on_failed", ("/bin/sh", "-c", script), facts, seconds)


def test_a_program_reads_the_facts_from_standard_input(tmp_path: Path) -> None:
    assert _run(f"cat > {tmp_path}/facts", study="1.2.3") is None
    assert (tmp_path / "facts").read_text() == '{"study": "1.2.3"}\n'


def test_a_program_that_fails_is_named_with_what_it_said() -> None:
    problem = _run("echo no such user >&2; exit 67")
    assert problem == "the program of on_failed ended with exit code 67; it said: no such user"


def test_a_program_that_hangs_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    problem = _run(f"sleep 300 & echo $! > {tmp_path}/pid; sleep 300", 1)
    assert problem is not None
    assert "was killed: it had not ended after" in problem
    _is_gone(int((tmp_path / "pid").read_text()))


def test_what_a_program_leaves_behind_is_killed_and_not_waited_for(tmp_path: Path) -> None:
    assert _run(f"sleep 300 & echo $! > {tmp_path}/pid") is None
    _is_gone(int((tmp_path / "pid").read_text()))


def _is_gone(pid: int) -> None:
    """Wait until a process has ended: a zombie may be left to the init process."""
    for _ in range(500):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return
        except OSError:
            return
        time.sleep(0.01)
    pytest.fail(f"process {pid} is still there")


def test_a_daemon_that_holds_the_output_open_is_not_waited_for(tmp_path: Path) -> None:
    assert _run(f"setsid sleep 300 & echo $! > {tmp_path}/pid; sleep 0.2") is None
    os.kill(int((tmp_path / "pid").read_text()), 9)


def test_a_flood_of_output_is_not_kept() -> None:
    problem = _run("yes flood | head -c 100000000; exit 3")
    assert problem is not None
    assert problem.startswith("the program of on_failed ended with exit code 3; it said: flood flood")
    assert len(problem) < 1000


def test_a_program_that_floods_for_ever_is_killed() -> None:
    problem = _run("yes", 0.5)
    assert problem is not None
    assert "was killed" in problem


def test_a_missing_program_is_said() -> None:
    problem = hooks.run("on_back", ("/nonexistent/program",), {}, 5)
    assert problem == "the program of on_back could not be started: No such file or directory"


def test_a_program_is_cut_short_once_the_pass_is_asked_to_end() -> None:
    problem = hooks.run("on_back", ("/bin/sleep", "300"), {}, 600, lambda: True)
    assert problem is not None
    assert "was killed" in problem


def test_facts_that_nobody_reads_keep_nobody_waiting() -> None:
    assert _run("exit 0", batches=["x" * 1000] * 1000) is None
