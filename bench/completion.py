"""Measures completion: from a study's last file to READY, by MPPS and by the quiet timer; passes of ``finalize`` over many waiting
batches; messages of modalities a second.

python -m bench.completion [delay] [finalize] [mpps]
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
from pynetdicom.association import Association

from bench import common
from examsend.demo import samples
from examsend.dicom import identity
from tests.services.process import MPPS, Listen, listening, modality
from tests.services.test_step import item, references

_STUDIES, _IMAGES = 10, 20
_COUNTS = (1, 1_000, 100_000)
_STORED_STEPS = 100_000
_SECONDS = 10.0


def main() -> None:
    """Run the benchmarks that are named; all without names."""
    parts = {"delay": _delay, "finalize": _finalize, "mpps": _mpps}
    chosen = sys.argv[1:] or list(parts)
    figures = {name: parts[name]() for name in chosen}
    kept = common.HERE / "completion.json"
    earlier = json.loads(kept.read_text()) if kept.exists() else {}
    common.keep("completion", {name: earlier[name] for name in parts if name in earlier} | figures)


def _rows(url: str, statement: str, *values: object) -> list[tuple[Any, ...]]:
    connection = psycopg2.connect(url.replace("postgresql+psycopg2:", "postgresql:", 1))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


@contextmanager
def _listen(url: str) -> Iterator[Listen]:
    with tempfile.TemporaryDirectory(prefix="examsend-bench-") as place, listening(Path(place), url) as made:
        assert made.port
        yield made


def _step(association: Association, uid: str, study: str, series: str, instances: list[str]) -> None:
    """Send a whole performed procedure step, as a modality does."""
    begun = item(
        PerformedProcedureStepStatus="IN PROGRESS",
        ScheduledStepAttributesSequence=[item(StudyInstanceUID=study)],
        PerformedSeriesSequence=[],
    )
    assert association.send_n_create(begun, MPPS, uid)[0].Status == 0
    made = item(SeriesInstanceUID=series, ReferencedImageSequence=references(*instances))
    ended = item(PerformedProcedureStepStatus="COMPLETED", PerformedSeriesSequence=[made])
    assert association.send_n_set(ended, MPPS, uid)[0].Status == 0


def _delay() -> dict[str, Any]:
    """From the registration of the last instance to READY, with ``finalize -q`` started every second by a timer."""
    figures: dict[str, Any] = {"studies": _STUDIES}
    with common.scratch() as place, common.database() as url, _listen(url) as listen:
        for how in ("MPPS", "quiet timer"):
            name = how.split()[0].lower()
            common.examsend("destination", "add", name, "A@127.0.0.1:1", "--no-default", url=url)
            drops = []
            for n in range(_STUDIES):
                drop = place / f"{name}{n}"
                files = samples.ct_study(drop, _IMAGES, size=64)
                drops.append(drop)
                if how == "MPPS":
                    found = [identity.inspect(file) for file in files]
                    uids = [f.sop_instance_uid for f in found]
                    first = found[0]
                    with modality(listen.port) as association:
                        study, series = first.study_instance_uid, first.series_instance_uid
                        _step(association, samples.new_uid(), study, series, uids)
            over = threading.Event()

            def timer(over: threading.Event = over) -> None:
                """Start a pass every second, or when the one before ends."""
                while not over.is_set():
                    began = time.monotonic()
                    common.examsend("finalize", "-q", url=url)
                    over.wait(max(0.0, began + 1 - time.monotonic()))

            running = threading.Thread(target=timer)
            running.start()
            try:
                for drop in drops:
                    common.examsend("ingest", drop, "--to", name, url=url, EXAMSEND_SETTLE="0")
                deadline = time.monotonic() + 120
                while time.monotonic() < deadline and len(_delays(url, name)) < _STUDIES:
                    time.sleep(0.5)
            finally:
                over.set()
                running.join()
            took = _delays(url, name)
            assert len(took) == _STUDIES
            figures[how] = {"median": statistics.median(took), "largest": max(took)}
    rows = [(h, f"{figures[h]['median']:.2f}", f"{figures[h]['largest']:.2f}") for h in ("MPPS", "quiet timer")]
    common.show(
        f"last instance registered -> READY, timer of 1 s, {_STUDIES} studies",
        ("announced by", "median s>", "largest s>"),
        rows,
    )
    return figures


def _delays(url: str, name: str) -> list[float]:
    found = _rows(
        url,
        "SELECT extract(epoch FROM b.ready_at - b.last_instance_at)::float FROM exam_batches b"
        " JOIN storage_backend_configs d ON d.id = b.destination_id WHERE d.name = %s AND b.status = 'READY'",
        name,
    )
    return [row[0] for row in found]


_PENDING = """
    INSERT INTO exam_batches (study_instance_uid, destination_id, check_at)
    SELECT '1.2.' || n, 1, clock_timestamp() + make_interval(secs => 3600 + n) FROM generate_series(1, %(count)s) n;
    INSERT INTO exam_batch_instances (batch_id, destination_id, sop_instance_uid, series_instance_uid, sop_class_uid,
        transfer_syntax_uid, processed_filepath, file_size, file_mtime_ns, dataset_offset, content_digest)
    SELECT b.id, 1, b.study_instance_uid || '.' || k, b.study_instance_uid || '.0', '1.2', '1.3', '/f', 1, 1, 0, sha256('x')
    FROM exam_batches b, generate_series(1, 4) k;
    INSERT INTO study_series (destination_id, study_instance_uid, series_instance_uid)
    SELECT 1, b.study_instance_uid, b.study_instance_uid || '.0' FROM exam_batches b;
"""

# Of each study five instances are announced, and four are here.
_ANNOUNCED = """
    INSERT INTO study_expectations (source, source_uid, state, changed)
    SELECT 'MPPS', study_instance_uid || '.9', 'COMPLETED', false FROM exam_batches;
    INSERT INTO expectation_studies (expectation_id, study_instance_uid)
    SELECT e.id, b.study_instance_uid FROM exam_batches b JOIN study_expectations e ON e.source_uid = b.study_instance_uid || '.9';
    INSERT INTO expected_series (expectation_id, series_instance_uid, bare)
    SELECT s.expectation_id, s.study_instance_uid || '.0', false FROM expectation_studies s;
    INSERT INTO expected_instances (expectation_id, sop_instance_uid, series_instance_uid)
    SELECT s.expectation_id, s.study_instance_uid || '.' || k, s.study_instance_uid || '.0'
    FROM expectation_studies s, generate_series(1, 5) k;
"""

# Ten other studies of which the last announced instance has just come.
_DUE = """
    UPDATE exam_batches SET check_at = clock_timestamp(), grown = true WHERE id <= 10
"""


def _finalize() -> dict[str, Any]:
    """Passes with so many PENDING batches that wait: nothing due (-q and without), and ten to be looked at."""
    figures: dict[str, Any] = {}
    for announced in (False, True):
        for count in _COUNTS:
            with common.database() as url:
                common.examsend("destination", "add", "a", "A@127.0.0.1:1", url=url)
                _rows(url, _PENDING % {"count": count})
                if announced:
                    _rows(url, _ANNOUNCED)
                _rows(url, "ANALYZE")
                took: dict[str, float] = {}
                for name, words, before in (
                    ("idle", ("finalize", "-q"), None),
                    ("whole command", ("finalize",), None),
                    ("ten looked at", ("finalize",), _DUE),
                ):
                    seconds = []
                    for _ in range(7):
                        if before is not None:
                            _rows(url, before)
                        seconds.append(common.timed(*words, url=url)[0])
                    took[name] = statistics.median(seconds)
                figures[f"{'announced' if announced else 'not announced'}, {count}"] = took
    names = ("idle", "whole command", "ten looked at")
    rows = []
    for what, took in figures.items():
        first = figures[what.rsplit(" ", 1)[0] + " 1"]
        rows.append((what, *(f"{took[n]:.3f}" for n in names), *(f"{took[n] / first[n]:.2f}" for n in names)))
    common.show(
        "finalize with so many waiting batches, whole process, median of 7",
        ("waiting", *(f"{n} s>" for n in names), *(f"{n}, times 1>" for n in names)),
        rows,
    )
    return figures


def _mpps() -> dict[str, Any]:
    """Messages a second with 100,000 steps stored: each step is an N-CREATE and an N-SET with 100 instances."""
    figures: dict[str, Any] = {"steps_stored": _STORED_STEPS, "instances_a_step": 100}
    with common.database() as url, _listen(url) as listen:
        _rows(
            url,
            "INSERT INTO study_expectations (source, source_uid, state, changed)"
            f" SELECT 'MPPS', '1.9.' || n, 'COMPLETED', false FROM generate_series(1, {_STORED_STEPS}) n;"
            " INSERT INTO expectation_studies (expectation_id, study_instance_uid) SELECT id, '1.8.' || id FROM study_expectations;"
            " INSERT INTO expected_instances (expectation_id, sop_instance_uid, series_instance_uid)"
            " SELECT id, '1.7.' || id || '.' || k, '1.6.' || id FROM study_expectations, generate_series(1, 10) k; ANALYZE",
        )
        for modalities in (1, 4):
            over = time.monotonic() + _SECONDS

            def talk(n: int, over: float = over, modalities: int = modalities) -> int:
                sent = 0
                with modality(listen.port) as association:
                    while time.monotonic() < over:
                        uid = f"1.5.{modalities}.{n}.{sent}"
                        _step(association, uid, f"{uid}.1", f"{uid}.2", [f"{uid}.3.{k}" for k in range(100)])
                        sent += 2
                return sent

            began = time.monotonic()
            with ThreadPoolExecutor(modalities) as pool:
                total = sum(pool.map(talk, range(modalities)))
            figures[f"{modalities} modalities"] = total / (time.monotonic() - began)
    rows = [(m, f"{figures[f'{m} modalities']:.0f}") for m in (1, 4)]
    common.show(
        f"MPPS messages a second, {_STORED_STEPS} steps stored",
        ("modalities>", "a second>"),
        rows,
    )
    return figures


if __name__ == "__main__":
    main()
