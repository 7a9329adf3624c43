"""What departments do with drop directories: whole studies, slow ones, late images, corrected ones, broken files, notes."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from examsend.demo import samples
from examsend.dicom import identity
from examsend.errors import FileProblem


@dataclass(slots=True)
class Written:
    """What was written."""

    studies: int = 0
    instances: int = 0
    broken: int = 0
    files: dict[str, tuple[str, str, bytes]] = field(default_factory=dict)
    """Of each DICOM file that is whole, by its name (no two are equal): drop directory, SOP Instance UID, SHA-256 of its data set."""
    spoilt: set[str] = field(default_factory=set)
    """Names of files that are cut short, or no DICOM."""
    other_names: set[str] = field(default_factory=set)
    """Names of files that are no DICOM."""
    steps: set[str] = field(default_factory=set)
    """UIDs of the performed procedure steps that were answered."""


class Modality:
    """Writes a study after the other, each for one drop directory, at a pace."""

    def __init__(
        self, drops: list[Path], scratch: Path, every: float, most: int, seed: int, steps: Sequence[str]
    ) -> None:
        """``scratch``: a directory on a disk that is never full; ``steps``: the command of ``bench.soak.steps``."""
        self._drops = drops
        self._scratch = scratch
        self._every = every
        self._most = most
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="modality", daemon=True)
        self._later: list[tuple[float, Path, bytes]] = []
        self._number = 0
        self.written = Written()
        self._steps = subprocess.Popen(
            steps,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        self._answers = threading.Thread(target=self._read_answers, name="steps", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()
        self._answers.start()

    def _read_answers(self) -> None:
        assert self._steps.stdout is not None
        for line in self._steps.stdout:
            self.written.steps.add(line.decode().strip())

    def stop(self) -> None:
        """Write what is due later, and end."""
        self._over.set()
        self._thread.join(60)
        for _, path, data in self._later:
            self._put(path, data)
        assert self._steps.stdin is not None
        self._steps.stdin.close()
        try:
            self._steps.wait(120)
        except subprocess.TimeoutExpired:
            self._steps.kill()
        self._answers.join(10)

    @property
    def done(self) -> bool:
        """Whether it has written all its studies."""
        return not self._thread.is_alive()

    def _run(self) -> None:
        due = time.monotonic()
        while self.written.studies < self._most:
            # The pace is kept although writing takes time.
            due += self._every * self._random.uniform(0.2, 1.8)
            if self._over.wait(max(0.0, due - time.monotonic())):
                return
            self._study(self._random.choice(self._drops))
            now = time.monotonic()
            ripe = [one for one in self._later if one[0] <= now]
            self._later = [one for one in self._later if one[0] > now]
            for _, path, data in ripe:
                self._put(path, data)

    def _study(self, drop: Path) -> None:
        rng = self._random
        many, size = (rng.randint(20, 60), 128) if rng.random() < 0.05 else (rng.randint(1, 6), rng.choice((8, 16, 64)))
        made = samples.ct_study(self._scratch, many, size=size, age=5.0)
        self.written.studies += 1
        place = drop / f"s{self.written.studies:05d}"
        self._until_there_is_room(lambda: place.mkdir(parents=True, exist_ok=True))
        if rng.random() < 0.5:
            self._announce(made)
        for path in made:
            data = path.read_bytes()
            path.unlink()
            late = rng.random() < 0.04
            target = place / self._name()
            if late:
                self._later.append((time.monotonic() + rng.uniform(5, 60), target, data))
            else:
                self._put(target, data, slowly=rng.random() < 0.02)
            if rng.random() < 0.02:
                # The same instance again, with other pixels: a correction.
                other = data[:-2] + bytes(rng.randrange(256) for _ in range(2))
                self._later.append((time.monotonic() + rng.uniform(0, 40), place / self._name(), other))
            if rng.random() < 0.02:
                self._put(place / self._name(), data)  # a copy
        if rng.random() < 0.05:
            cut = data[: rng.randrange(200, len(data) - 4)]
            # Cut between two elements it would be another version of the instance.
            if not self._is_whole(cut):
                self._spoil(place / self._name(), cut)
                self.written.broken += 1
        if rng.random() < 0.05:
            name = self._name()
            self.written.other_names.add(name)
            self._spoil(place / name, b"not a DICOM file\n")

    def _announce(self, files: Sequence[Path]) -> None:
        """Say by MPPS what a study has."""
        series: dict[str, list[str]] = {}
        for file in files:
            found = identity.inspect(str(file))
            series.setdefault(found.series_instance_uid, []).append(found.sop_instance_uid)
        step = {"uid": samples.new_uid(), "study": found.study_instance_uid, "series": series}
        assert self._steps.stdin is not None
        self._steps.stdin.write(json.dumps(step).encode() + b"\n")
        self._steps.stdin.flush()

    def _name(self) -> str:
        self._number += 1
        return f"f{self._number:07d}"

    def _is_whole(self, data: bytes) -> bool:
        scratch = self._scratch / "cut"
        scratch.write_bytes(data)
        try:
            identity.inspect(str(scratch))
        except FileProblem:
            return False
        finally:
            scratch.unlink()
        return True

    def _spoil(self, path: Path, data: bytes) -> None:
        self.written.spoilt.add(path.name)
        self._write(path, data)

    def _put(self, path: Path, data: bytes, *, slowly: bool = False) -> None:
        self.written.instances += 1
        self._write(path, data, slowly=slowly)

    def _note(self, file: Path, path: Path) -> None:
        if path.name not in self.written.spoilt:
            found = identity.inspect(str(file))
            self.written.files[path.name] = (path.parents[1].name, found.sop_instance_uid, found.content_digest)

    def _write(self, path: Path, data: bytes, *, slowly: bool = False) -> None:
        """Write a file under its name while others may look, or rename it once it is whole."""
        scratch = self._scratch / path.name
        scratch.write_bytes(data)
        self._note(scratch, path)
        scratch.unlink()
        if slowly:
            step = max(1, len(data) // 4)
            with path.open("wb", buffering=0) as stream:
                for at in range(0, len(data), step):
                    self._until_there_is_room(lambda at=at: self._piece(stream, at, data[at : at + step]))  # type: ignore[misc]
                    time.sleep(0.3)
            return
        part = path.with_name(f".{path.name}.tmp")
        self._until_there_is_room(lambda: part.write_bytes(data))
        if self._random.random() < 0.5:
            then = time.time() - 60
            os.utime(part, (then, then))
        part.rename(path)

    @staticmethod
    def _piece(stream: io.FileIO, at: int, data: bytes) -> None:
        stream.seek(at)
        if stream.write(data) != len(data):
            raise OSError(errno.ENOSPC, "short write")

    @staticmethod
    def _until_there_is_room(write: Callable[[], object]) -> None:
        """Do it; again and again while the disk is full."""
        deadline = time.monotonic() + 60
        while True:
            try:
                write()
            except OSError as error:
                if error.errno != errno.ENOSPC or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            else:
                return
