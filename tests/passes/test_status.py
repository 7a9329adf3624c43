"""What `examsend status` shows: the head, destinations, what needs attention, what moves; on terminals and in pipes."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from examsend.commands import status
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.errors import UsageError
from examsend.report.layout import flow
from examsend.report.sparkline import sparkline
from examsend.report.uids import SHORTEST, is_uid, shortened
from examsend.states import BatchState
from tests.helpers import cli, execute, one
from tests.passes.world import World, file

UID = "1.2.826.0.1.3680043.8.498.10000000000000000000000000000000000001"


@pytest.fixture
def world(settings: Settings, database: engine.Database) -> World:
    """One destination."""
    return World(settings, database)


def _sent(world: World, uid: str, study: str) -> int:
    world.arrive(file(uid, study))
    world.wait(100)
    world.finalize()
    return world.send()[0]


def _fail(world: World, batch: int) -> None:
    execute(
        world.database,
        "UPDATE exam_batches SET status = 'FAILED', finished_at = now(), ready_at = coalesce(ready_at, now()), next_attempt_at = NULL,"
        " failure_code = 'INSTANCES_FAILED', failure = '1 of 1 failed: C000 cannot understand' WHERE id = :batch",
        batch=batch,
    )


def _reject(world: World, study: str, path: str = "/drop/cut.dcm") -> None:
    execute(
        world.database,
        "INSERT INTO rejected_files (file_path, file_size, file_mtime_ns, reason_code, reason, study_instance_uid)"
        " VALUES (:path, 1, 1, 'INCOMPLETE', 'cut short', :study)",
        path=path,
        study=study,
    )


def test_what_needs_attention_comes_first_then_what_moves_the_oldest_first(world: World) -> None:
    whole = _sent(world, "1", "1.2.1")
    lacking = _sent(world, "2", "1.2.2")
    _reject(world, "1.2.2")
    for n in range(3, 8):
        world.arrive(file(str(n), f"1.2.{n}"))
        world.wait(10)
    _fail(world, 3)
    execute(world.database, "UPDATE exam_batches SET held_at = now(), held_reason = 'me: wrong patient' WHERE id = 5")
    execute(world.database, "UPDATE exam_batches SET created_at = now() - interval '3 h' WHERE id = 7")
    shown = status.run(world.settings).batches
    assert [(b.id, b.attention) for b in shown] == [
        (3, "FAILED"), (5, "HELD"), (7, "STUCK"), (lacking, "FILES_REJECTED"), (4, None), (6, None),
    ]  # fmt: skip
    assert whole not in [b.id for b in shown]
    assert [b.waiting_code for b in shown[:2]] == ["INSTANCES_FAILED", "HELD"]
    assert shown[3].waiting_for == "not complete at the archive: 1 file was rejected"


def test_a_dismissed_rejection_needs_no_attention_any_more(world: World) -> None:
    _sent(world, "2", "1.2.2")
    _reject(world, "1.2.2")
    assert len(status.run(world.settings).batches) == 1
    execute(
        world.database,
        "UPDATE rejected_files SET dismissed_at = now(), dismissed_by = 'me', dismissed_why = 'a test'",
    )
    shown = status.run(world.settings)
    assert (shown.batches, shown.rejected_count) == ((), 0)


def test_the_head_has_the_figures_of_the_site(world: World) -> None:
    execute(
        world.database,
        "INSERT INTO delivery_totals (destination_id, hour, shard, associations, established, released, stored, sent_batches,"
        " sent_instances, ready_seconds, sent_seconds)"
        " VALUES (1, date_trunc('hour', now(), 'UTC'), 0, 4, 4, 3, 100, 2, 100, 240, 20)",
    )
    execute(
        world.database,
        "INSERT INTO command_passes VALUES ('send', 'host7', now(), now() - interval '20 s', 1.5, 1, 3, 1)",
    )
    world.arrive(file("1"))
    _fail(world, 1)
    _reject(world, "1.2.9")
    found = status.run(world.settings)
    head = found.overview
    assert head is not None
    assert (head.failed, head.rejected, head.rejected_today, head.stuck_pending) == (1, 1, 1, 0)
    assert (head.sent, head.batch_size, head.ready_seconds, head.sent_seconds) == (2, 50, 120, 10)
    assert [(p.command, p.host, p.exit_code) for p in head.passes] == [("send", "host7", 1)]
    [pacs] = found.destinations
    assert (pacs.stored_today, pacs.associations, pacs.association_success) == (100, 4, 0.75)
    assert (len(pacs.stored_by_hour), pacs.stored_by_hour[-1]) == (24, 100)
    assert pacs.health_code == "UNUSED"


def test_the_password_of_the_database_is_never_shown(world: World) -> None:
    url = world.settings.database_url
    assert url is not None
    with_password = url.replace("postgres@", "postgres:geheim@")
    done = cli("status", url=with_password)
    assert done.returncode == 0
    assert "geheim" not in done.stdout + done.stderr + cli("status", "--json", url=with_password).stdout
    assert str(one(world.database, "SELECT current_database()")) in done.stdout


def test_states_since_and_destination_choose(world: World) -> None:
    other = world.add("other")
    old = _sent(world, "1", "1.2.1")
    world.wait(7200)
    new = _sent(world, "2", "1.2.2")
    world.arrive(file("3", "1.2.3"), to=(other,))

    def ids(**values: object) -> list[int]:
        return [b.id for b in status.run(world.settings, **values).batches]  # type: ignore[arg-type]

    assert ids(states=(BatchState.SENT,)) == [new, old]
    assert ids(since=600.0) == [3, new]
    assert ids(states=(BatchState.SENT,), since=600.0) == [new]
    assert ids(destination="other") == [3]
    assert ids(states=(BatchState.SENT,), limit=1) == [new]
    assert status.run(world.settings, states=(BatchState.SENT,), limit=1).more == 1
    with pytest.raises(UsageError, match="no destination is called"):
        ids(destination="nobody")
    assert cli("status", "--since", "yesterday", url=world.settings.database_url).returncode == 2


def test_a_pipe_gets_one_line_a_record_whole_uids_and_no_decoration(world: World) -> None:
    for n in range(30):
        world.arrive(file(f"{n}", f"{UID}{n:02}"))
    url = world.settings.database_url
    lines = cli("status", "--limit", "30", url=url).stdout.splitlines()
    assert sum(f" {UID}{n:02} " in line for n in range(30) for line in lines) == 30
    assert not any(c in "─━│╸" for line in lines for c in line)
    assert all(line == line.rstrip() for line in lines)
    narrow = cli("status", "--limit", "30", url=url, COLUMNS="70").stdout.splitlines()
    records = [line for line in narrow if re.match(r" *\d+  PENDING", line)]
    assert len(records) == 30
    assert all(len(line) <= 70 for line in records)
    command = f"{sys.executable} -m examsend status --limit 30 | head -n 1"
    piped = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        env={**os.environ, "EXAMSEND_DATABASE_URL": url or ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (len(piped.stdout.splitlines()), piped.stderr) == (1, "")


@contextmanager
def _terminal(
    settings: Settings, columns: int, rows: int, *words: str
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    kept = {k: v for k, v in os.environ.items() if not k.startswith("EXAMSEND_") and k != "COLUMNS"}
    process = subprocess.Popen(
        [sys.executable, "-m", "examsend", "status", *words],
        stdin=other,
        stdout=other,
        stderr=other,
        env={**kept, "TERM": "xterm-256color", "LANG": "C.UTF-8", "EXAMSEND_DATABASE_URL": settings.database_url or ""},
        start_new_session=True,
    )
    os.close(other)
    try:
        yield process, main
    finally:
        process.kill()
        process.wait()
        os.close(main)


def _read(main: int, *, until: str = "", seconds: float = 30.0) -> str:
    data = b""
    over = time.monotonic() + seconds
    while time.monotonic() < over:
        if select.select([main], [], [], 0.2)[0]:
            try:
                data += os.read(main, 65536)
            except OSError:
                break
        if until and until in data.decode(errors="replace"):
            break
    return data.decode(errors="replace")


def _plain(text: str) -> list[str]:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r\n", "\n").split("\n")


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_on_a_terminal_no_line_is_too_long_and_each_shortened_uid_finds_its_study(world: World, columns: int) -> None:
    studies = [f"{UID[:-2]}{n:02}" for n in range(1, 4)]
    for n, study in enumerate(studies):
        world.arrive(file(f"{n}", study))
    with _terminal(world.settings, columns, 24) as (_process, main):
        lines = _plain(_read(main))
    # Where the path of the database's socket is longer than a line, it is not broken.
    assert [line for line in lines if " " in line.strip() and len(line) > columns] == []
    shown = [
        word for line in lines for word in line.split() if re.fullmatch(r"[0-9.]+…?[0-9.]+", word) and len(word) > 17
    ]
    shown = [word for word in shown if word.startswith("1.2.")]
    assert len(shown) == 3
    for word in shown:
        head, _, tail = word.partition("…")
        assert [s for s in studies if s.startswith(head) and s.endswith(tail or head)] != []
        found = status.run(world.settings, word=word)
        assert found.study_instance_uid in studies
        assert (found.study_instance_uid or "").endswith(tail or head)


def test_watch_shows_it_again_follows_the_size_and_ends_with_q(world: World) -> None:
    world.arrive(file("1", UID))
    with _terminal(world.settings, 80, 24, "--watch") as (process, main):
        assert "PENDING" in _read(main, until="PENDING")
        fcntl.ioctl(main, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
        os.kill(process.pid, signal.SIGWINCH)
        assert UID in _read(main, until=UID), "at 120 columns it is whole"
        world.arrive(file("2", "1.2.77"))
        assert "1.2.77" in _read(main, until="1.2.77")
        os.write(main, b"q")
        left = _read(main)
        assert process.wait(20) == 0
        assert "\x1b[?1049l" in left, "the screen before is back"


def test_ctrl_c_ends_watch_with_130(world: World) -> None:
    with _terminal(world.settings, 80, 24, "--watch") as (process, main):
        _read(main, until="nothing waits")
        os.kill(process.pid, signal.SIGINT)
        _read(main)
        assert process.wait(20) == 130


def test_watch_needs_a_terminal(world: World) -> None:
    done = cli("status", "--watch", url=world.settings.database_url)
    assert done.returncode == 2
    assert "--watch needs a terminal" in done.stderr


def test_json_has_whole_uids_codes_and_every_part(world: World) -> None:
    world.arrive(file("1", UID))
    found = json.loads(cli("status", "--json", url=world.settings.database_url).stdout)
    [batch] = found["batches"]
    assert (batch["study_instance_uid"], batch["status"], batch["waiting_code"]) == (UID, "PENDING", "WAITS")
    assert found["overview"]["failed"] == 0
    assert found["destinations"][0]["health_code"] == "UNUSED"


@pytest.mark.parametrize("width", [10, SHORTEST, 24, 40, 63, 64, 200])
def test_a_shortened_uid_keeps_its_end(width: int) -> None:
    short = shortened(UID, width)
    assert len(short) <= max(width, SHORTEST)
    head, gap, tail = short.partition("…" if "…" in short else "...")
    assert UID.startswith(head)
    assert UID.endswith(tail if gap else head)
    assert is_uid(UID)


def test_a_flow_breaks_between_its_parts_and_never_in_a_word() -> None:
    parts = ["pacs", "held: " + "x" * 30, "12 READY", UID]
    lines = flow(parts, 40, indent=2)
    assert " ".join(" ".join(lines).split()) == " ".join(parts)
    assert all(len(line) <= 40 for line in lines if UID not in line)
    assert any(line.strip() == UID for line in lines)


def test_a_sparkline_has_a_character_for_each_number() -> None:
    assert len(sparkline(range(24))) == 24
    assert sparkline([0, 0]) in {"··", "__"}
    assert sparkline([0, 1, 8])[0] != sparkline([0, 1, 8])[1] != sparkline([0, 1, 8])[2]


def test_the_captures_in_the_documents_break_no_uid() -> None:
    page = (Path(__file__).parents[2] / "docs" / "status.md").read_text()
    captures = re.findall(r"### (\d+) x \d+\n\n```text\n(.*?)```", page, re.DOTALL)
    assert [int(columns) for columns, _ in captures] == [60, 80, 120]
    for columns, capture in captures:
        assert max(map(len, capture.splitlines())) <= int(columns)
        uids = re.findall(r"\b1\.2\.826\S*", capture)
        assert len(uids) == 12
        assert all(re.fullmatch(r"1\.2\.826[0-9.]*(…[0-9.]{10,}|[0-9.]{20,})", uid) for uid in uids)
