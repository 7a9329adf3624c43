"""What must hold when all faults are over, whatever they were. Each check returns sentences about what does not hold."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg2
from pydicom import dcmread
from pydicom.dataset import Dataset

from bench.soak.modality import Written
from examsend.dicom import identity

# Every change of a batch that a sender may not make, seen by the database itself.
AUDIT = """
    CREATE TABLE soak_audit (batch bigint, what text, at timestamptz DEFAULT clock_timestamp());
    CREATE TABLE soak_used (batch bigint, destination bigint);
    CREATE FUNCTION soak_batch() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF OLD.status = 'SENDING' AND NEW.attempt_id <> OLD.attempt_id AND OLD.lease_expires_at > clock_timestamp() THEN
            INSERT INTO soak_audit (batch, what) VALUES (OLD.id, 'claimed while its lease ran');
        END IF;
        IF OLD.status = 'SENT' AND NEW.status <> 'SENT' THEN
            INSERT INTO soak_audit (batch, what) VALUES (OLD.id, 'SENT, then ' || NEW.status);
        END IF;
        IF NEW.status = 'SENT' AND OLD.status <> 'SENDING' AND OLD.status <> 'SENT' THEN
            INSERT INTO soak_audit (batch, what) VALUES (OLD.id, 'SENT from ' || OLD.status);
        END IF;
        IF OLD.status = 'SENDING' AND NEW.status IN ('READY', 'FAILED') AND NEW.attempt_count = OLD.attempt_count
           AND OLD.lease_expires_at > clock_timestamp() THEN
            INSERT INTO soak_used (batch, destination) VALUES (OLD.id, OLD.destination_id);
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER soak_batch BEFORE UPDATE ON exam_batches FOR EACH ROW EXECUTE FUNCTION soak_batch();
    CREATE FUNCTION soak_instance() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF OLD.outcome = 'STORED' AND NEW.outcome <> 'STORED' THEN
            INSERT INTO soak_audit (batch, what) VALUES (OLD.batch_id, 'an instance was STORED, then ' || NEW.outcome);
        END IF;
        IF NEW.outcome = 'STORED' AND OLD.outcome <> 'STORED'
           AND NOT EXISTS (SELECT 1 FROM exam_batches b WHERE b.id = NEW.batch_id AND b.status = 'SENDING') THEN
            INSERT INTO soak_audit (batch, what) VALUES (OLD.batch_id, 'an instance was STORED by no attempt');
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER soak_instance BEFORE UPDATE ON exam_batch_instances FOR EACH ROW EXECUTE FUNCTION soak_instance();
"""


class Verdict:
    """Looks at the database, the receivers' stores and the logs."""

    def __init__(
        self, url: str, written: Written, routes: Mapping[str, Sequence[str]], seen_as: Mapping[Path, Path]
    ) -> None:
        """``routes``: the destinations of each drop directory; ``seen_as``: directories of the hosts, and what they are here."""
        self._connection = psycopg2.connect(url)
        self._connection.autocommit = True
        self._written = written
        self._routes = routes
        self._seen_as = seen_as

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Return the rows of a SELECT."""
        with self._connection.cursor() as cursor:
            cursor.execute(statement, values)
            return list(cursor.fetchall())

    def nothing_vanished(self) -> Iterator[str]:
        """1. Every file is an instance for each of its destinations, or is rejected."""
        known: dict[str, set[bytes]] = defaultdict(set)
        for name, sha in self.rows(
            "SELECT d.name, i.content_digest FROM exam_batch_instances i JOIN storage_backend_configs d ON d.id = i.destination_id"
        ):
            known[name].add(bytes(sha))
        for file, (drop, uid, sha) in self._written.files.items():
            for destination in self._routes[drop]:
                if sha not in known[destination]:
                    yield f"{file} ({uid}) is no instance for {destination}"
        rejected = {Path(str(p)).name for (p,) in self.rows("SELECT file_path FROM rejected_files")}
        for name in self._written.spoilt - rejected:
            if name not in self._written.other_names:
                yield f"{name}, which is cut short, is not on record as rejected"

        stored = {uid for (uid,) in self.rows("SELECT source_uid FROM study_expectations WHERE source = 'MPPS'")}
        for uid in self._written.steps - stored:
            yield f"the step {uid} was answered with success, and is not stored"

    def sent_is_true(self, stores: Mapping[str, Store]) -> Iterator[str]:
        """2. What is SENT is in the receiver's own store."""
        for batch, name, outcome, uid in self.rows(
            "SELECT b.id, d.name, i.outcome, i.sop_instance_uid FROM exam_batches b JOIN exam_batch_instances i ON i.batch_id = b.id"
            " JOIN storage_backend_configs d ON d.id = b.destination_id"
            " WHERE b.status = 'SENT' AND i.outcome NOT IN ('STORED', 'SUPERSEDED', 'NOT_SENT')"
        ):
            yield f"batch {batch} for {name} is SENT, and {uid} is {outcome}"
        for batch, name, uid, sha, path, last in self.rows(
            "SELECT i.batch_id, d.name, i.sop_instance_uid, i.content_digest, i.processed_filepath,"
            "       i.stored_at = max(i.stored_at) OVER (PARTITION BY i.destination_id, i.sop_instance_uid)"
            " FROM exam_batch_instances i JOIN storage_backend_configs d ON d.id = i.destination_id WHERE i.outcome = 'STORED'"
        ):
            for sentence in stores[name].lacks(batch, uid, bytes(sha), self._here(Path(path)), last):
                yield f"{name}: {sentence}"

    def _here(self, path: Path) -> Path:
        for there, here in self._seen_as.items():
            if path.is_relative_to(there):
                return here / path.relative_to(there)
        return path

    def one_attempt_at_a_time(self) -> Iterator[str]:
        """3. No batch was claimed while its lease ran, and nothing was written by a sender without a claim."""
        for batch, what, count in self.rows("SELECT batch, what, count(*) FROM soak_audit GROUP BY batch, what"):
            yield f"batch {batch}: {what} ({count} times)"

    def all_ended(self) -> Iterator[str]:
        """4. Everything is SENT or FAILED."""
        for state, count in self.rows(
            "SELECT status, count(*) FROM exam_batches WHERE status NOT IN ('SENT', 'FAILED') GROUP BY status"
        ):
            yield f"{count} batches are still {state}"

    def no_attempt_used(self, destination: str) -> Iterator[str]:
        """5. A destination that is away uses up no attempts. One whose sender dies counts: its lease runs out, nobody gives it back."""
        for batch, count in self.rows(
            "SELECT u.batch, count(*) FROM soak_used u JOIN storage_backend_configs d ON d.id = u.destination"
            " WHERE d.name = %s GROUP BY u.batch",
            destination,
        ):
            yield f"batch {batch} for {destination}, which was never there, has used {count} attempts"


class Store:
    """What a receiver that keeps the bytes has stored."""

    def __init__(self, directory: Path) -> None:
        self.copies: Counter[bytes] = Counter()
        for path in directory.iterdir():
            try:
                self.copies[identity.inspect(str(path)).content_digest] += 1
            except Exception:  # noqa: BLE001 (it was killed while it wrote the file)
                continue

    def lacks(self, batch: object, uid: str, sha: bytes, _path: Path, _last: bool) -> Iterator[str]:
        """Say whether it lacks an instance that is STORED."""
        if sha not in self.copies:
            yield f"batch {batch}: {uid} is STORED, and the receiver does not have its bytes"

    @property
    def again(self) -> int:
        """Instances that it has stored again."""
        return sum(n - 1 for n in self.copies.values())


class Archive(Store):
    """What a receiver that writes files anew has: the same elements, of the version that it got last."""

    def __init__(self, directory: Path) -> None:
        self._files: dict[str, list[Path]] = defaultdict(list)
        for path in directory.rglob("*"):
            if path.is_file():
                try:
                    self._files[identity.inspect(str(path)).sop_instance_uid].append(path)
                except Exception:  # noqa: BLE001 (its own files, and what it was killed over)
                    continue

    def lacks(self, batch: object, uid: str, _sha: bytes, path: Path, last: bool) -> Iterator[str]:
        """Say whether it lacks an instance that is STORED."""
        if uid not in self._files:
            yield f"batch {batch}: {uid} is STORED, and the receiver does not have it"
        elif last and not any(self._equal(path, mine) for mine in self._files[uid]):
            yield f"batch {batch}: {uid} is STORED, and the receiver has other values"

    def _equal(self, sent: Path, mine: Path) -> bool:
        return self._values(dcmread(sent)) == self._values(dcmread(mine))

    def _values(self, data_set: Dataset) -> dict[int, object]:
        return {int(e.tag): e.value for e in data_set if e.tag.element != 0}

    @property
    def again(self) -> int:
        """Not known: it keeps one file for each instance."""
        return 0
