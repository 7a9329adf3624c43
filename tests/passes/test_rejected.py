"""Files that cannot be registered: reported once, listed with their own reason, set aside on record, looked at again."""

from __future__ import annotations

from pathlib import Path

import pytest

from examsend.commands import ingest, rejected, status
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import samples
from examsend.dicom import identity
from examsend.errors import UsageError
from examsend.report import text
from tests.helpers import add, cli, one, rows


@pytest.fixture
def pacs(settings: Settings) -> Settings:
    """Settings with one destination, at an address where no process listens."""
    add(settings, "PACS@127.0.0.1:1")
    return settings


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    """A file that is cut short, in a directory of its own with another that is whole."""
    files = samples.ct_study(tmp_path / "drop", 2, size=16)
    files[0].write_bytes(files[0].read_bytes()[:-100])
    return files[0]


def _reasons(settings: Settings, **values: object) -> list[str]:
    return [file.reason for file in rejected.run(settings, **values).rejected]  # type: ignore[arg-type]


def test_a_rejected_file_is_reported_once_with_its_reason_and_counted_later(pacs: Settings, cut: Path) -> None:
    first = ingest.run(pacs, [cut.parent])
    assert [r.path for r in first.rejections] == [str(cut)]
    assert first.needs_person
    again = ingest.run(pacs, [cut.parent])
    assert (again.rejected, again.rejected_before, again.rejections, again.needs_person) == (1, 1, (), False)
    assert "1 rejected before: `examsend rejected`" in text.rendered(again)
    assert _reasons(pacs) == [first.rejections[0].sentence]


def test_a_rejected_file_that_changes_is_reported_again(pacs: Settings, cut: Path) -> None:
    ingest.run(pacs, [cut.parent])
    cut.write_bytes(cut.read_bytes()[:-2])
    changed = ingest.run(pacs, [cut.parent])
    assert "410 are there" in changed.rejections[0].sentence
    assert changed.needs_person


def test_a_rejection_that_no_ingest_has_reported_is_reported_by_the_next(
    pacs: Settings, cut: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from examsend.queue import rejected as on_record

    with monkeypatch.context() as patched:
        patched.setattr(on_record, "reported", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ingest.run(pacs, [cut.parent])
    found = ingest.run(pacs, [cut.parent])
    assert "says 512 bytes" in found.rejections[0].sentence
    assert found.needs_person


def test_an_unreadable_file_is_reported_once_and_again_for_another_reason(
    pacs: Settings, cut: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(identity, "inspect", refuse)
        assert len(ingest.run(pacs, [cut.parent]).rejections) == 2
        again = ingest.run(pacs, [cut.parent])
        assert (again.rejected, again.rejected_before, again.needs_person) == (2, 2, False)
    found = ingest.run(pacs, [cut.parent])
    assert (found.new, [r.path for r in found.rejections]) == (1, [str(cut)])


def test_a_file_that_was_unreadable_and_is_no_dicom_file_is_not_listed_any_more(
    pacs: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    with monkeypatch.context() as patched:
        patched.setattr(identity, "inspect", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "denied")))
        ingest.run(pacs, [tmp_path])
    assert len(_reasons(pacs)) == 1
    assert ingest.run(pacs, [tmp_path]).ignored == 1
    assert _reasons(pacs) == []


def test_the_uids_of_a_rejected_file_are_kept_where_they_can_be_read(pacs: Settings, tmp_path: Path) -> None:
    [file] = samples.ct_study(tmp_path / "drop", 1, size=16, study="1.2.3.4")
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    (file.parent / "early.dcm").write_bytes(whole[:400])
    ingest.run(pacs, [file.parent])
    found = {Path(r.path).name: r for r in rejected.run(pacs).rejected}
    assert found[file.name].study_instance_uid == "1.2.3.4"
    assert found[file.name].sop_instance_uid
    assert found["early.dcm"].study_instance_uid is None
    assert [Path(r.path).name for r in rejected.run(pacs, study="1.2.3.4").rejected] == [file.name]


def test_a_file_that_is_set_aside_is_on_record_and_counted_nowhere_until_it_changes(
    pacs: Settings, database: engine.Database, cut: Path
) -> None:
    ingest.run(pacs, [cut.parent])
    with pytest.raises(UsageError, match="--why"):
        rejected.dismiss(pacs, [str(cut)], why=" ")
    with pytest.raises(UsageError, match="is not a rejected file"):
        rejected.dismiss(pacs, [str(cut), str(cut.parent / "other")], why="x")
    assert len(_reasons(pacs)) == 1, "nothing is set aside if one path is wrong"
    assert rejected.dismiss(pacs, [str(cut)], why="a test image", by="eve").dismissed == (str(cut),)
    assert rejected.dismiss(pacs, [str(cut)], why="again", by="eve").before == (str(cut),)
    assert rows(database, "SELECT act, who, file_path, why FROM events WHERE act = 'DISMISS'") == [
        ("DISMISS", "eve", str(cut), "a test image")
    ]
    assert one(database, "SELECT study_instance_uid FROM events WHERE act = 'DISMISS'")
    again = ingest.run(pacs, [cut.parent])
    assert (again.rejected, again.ignored, again.needs_person) == (0, 1, False)
    assert (_reasons(pacs), status.run(pacs).rejected_count) == ([], 0)
    [aside] = rejected.run(pacs, dismissed=True).rejected
    assert (aside.dismissed_by, aside.dismissed_why) == ("eve", "a test image")
    cut.write_bytes(cut.read_bytes()[:-2])
    assert ingest.run(pacs, [cut.parent]).needs_person
    assert len(_reasons(pacs)) == 1


def test_retry_registers_what_can_be_registered_now(pacs: Settings, database: engine.Database, tmp_path: Path) -> None:
    files = samples.ct_study(tmp_path / "drop", 4, size=16)
    whole = [file.read_bytes() for file in files]
    for file, data in zip(files, whole, strict=True):
        file.write_bytes(data[:-100])
    ingest.run(pacs, [tmp_path / "drop"])
    files[0].write_bytes(whole[0])
    files[1].unlink()
    files[2].write_text("a note")
    found = rejected.look_again(pacs)
    assert (found.looked, found.registered, found.ignored) == (4, 1, 1)
    assert found.gone == (str(files[1]),)
    assert [r.path for r in found.rejections] == [str(files[3])]
    assert "says 512 bytes" in found.rejections[0].sentence
    assert found.needs_person
    assert [r.path for r in rejected.run(pacs).rejected] == [str(files[3])]
    assert one(database, "SELECT processed_filepath FROM exam_batch_instances") == str(files[0])
    files[3].write_bytes(whole[3])
    assert not rejected.look_again(pacs, [str(files[3])]).needs_person
    assert rejected.look_again(pacs).looked == 0


def test_retry_does_not_follow_a_link_out_of_its_directory(pacs: Settings, cut: Path, tmp_path: Path) -> None:
    [outside] = samples.ct_study(tmp_path / "elsewhere", 1, size=16)
    ingest.run(pacs, [cut.parent])
    cut.unlink()
    cut.symlink_to(outside)
    found = rejected.look_again(pacs)
    assert (found.registered, found.ignored) == (0, 1)


def test_the_command_lists_dismisses_and_refuses_what_contradicts(
    pacs: Settings, cut: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest.run(pacs, [cut.parent])
    shown = cli("rejected", url=database_url)
    assert (shown.returncode, f"{cut}: " in shown.stdout, "says 512 bytes" in shown.stdout) == (0, True, True)
    assert (
        cli("rejected", "--retry", url=database_url, EXAMSEND_SETTLE="0", EXAMSEND_INCOMPLETE_AFTER="0").returncode == 1
    )
    assert cli("rejected", "--dismiss", cut, url=database_url).returncode == 2
    monkeypatch.chdir(cut.parent)
    done = cli("rejected", "--dismiss", cut.name, "--why", "known", url=database_url)
    assert done.returncode == 0, done.stderr
    assert cli("rejected", url=database_url).stdout == "no rejected files\n"
