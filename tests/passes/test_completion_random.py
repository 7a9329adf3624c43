"""Random histories: files, announcements, passes and crashes in any order, against a small model of what is complete.

An ordinary run plays 25; the long run, EXAMSEND_TEST_ROUNDS=10, plays 250. Hypothesis prints the history that fails.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from examsend.commands import finalize
from examsend.config.settings import Settings
from examsend.db import engine
from examsend.queue.announcements import Series
from tests.helpers import execute, rounds, rows
from tests.passes.world import World, file

STUDIES = ("1.1", "1.2")
DESTINATIONS = (1, 2)
GRACE, QUIET = 2.0, 60.0
INSTANCES = {f"{study}.{n}": study for study in STUDIES for n in range(3)}
"""SOP Instance UID -> Study Instance UID. Each study has two series."""
SERIES = {uid: f"{study}.7{int(uid[-1]) % 2}" for uid, study in INSTANCES.items()}


@dataclass(frozen=True)
class Step:
    """A performed procedure step: the studies that it names, and the instances that it lists at its end."""

    uid: str
    studies: tuple[str, ...]
    listed: tuple[str, ...]
    end: str


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Step], list[tuple[object, ...]]]:
    """Draw steps, and what happens in which order."""
    uids = sorted(INSTANCES)
    owners = draw(st.lists(st.sampled_from([None, 0, 1]), min_size=len(uids), max_size=len(uids)))
    steps = [
        Step(
            f"9.{n}",
            tuple(draw(st.sampled_from([("1.1",), ("1.2",), STUDIES, ("8.8",)]))),
            tuple(uid for uid, owner in zip(uids, owners, strict=True) if owner == n),
            draw(st.sampled_from(["COMPLETED", "COMPLETED", "DISCONTINUED"])),
        )
        for n in range(draw(st.sampled_from([0, 1, 2, 2])))
    ]
    messages = [(kind, n) for n in range(len(steps)) for kind in ("create", "progress", "end")]
    if draw(st.booleans()):
        messages.sort()  # the steps go on at the same time
    some = st.lists(st.sampled_from(uids), min_size=1, max_size=4, unique=True)
    to = st.sampled_from([(1,), (2,), DESTINATIONS, DESTINATIONS])
    other = st.one_of(
        st.tuples(st.just("arrive"), some, to),
        st.tuples(st.just("pass"), st.sampled_from([0.5, 1.0, 2.5, 2.5, 30.0, 61.0]), st.booleans()),
        st.tuples(st.just("pass"), st.sampled_from([2.5, 61.0]), st.booleans()),
        # The answer of the last message is lost, or listen dies before it: the modality sends it again.
        st.just(("again",)),
    )
    happens: list[tuple[object, ...]] = draw(st.lists(other, min_size=6, max_size=14))
    at = 0
    for message in messages:
        at = draw(st.integers(at, len(happens)))
        happens.insert(at, message)
        at += 1
    return steps, happens


@dataclass
class Model:
    """What has happened, and what follows from it."""

    now: float = 0.0
    here: dict[tuple[int, str], float] = field(default_factory=dict)
    """(destination, SOP Instance UID) -> when it arrived."""
    steps: dict[str, tuple[Step, bool, tuple[str, ...], float]] = field(default_factory=dict)
    """SOP Instance UID of the step -> (step, whether it is over, what it lists, when that was said)."""
    last: dict[tuple[int, str], float] = field(default_factory=dict)
    """(destination, study) -> when its last new instance arrived."""

    def touching(self, destination: int, study: str) -> list[tuple[Step, bool, tuple[str, ...], float]]:
        arrived = {uid for d, uid in self.here if d == destination and INSTANCES[uid] == study}
        series = {SERIES[uid] for uid in arrived}
        return [
            found
            for found in self.steps.values()
            if study in found[0].studies or arrived & set(found[2]) or series & {SERIES[uid] for uid in found[2]}
        ]

    def incomplete(self, destination: int, study: str) -> bool:
        """Whether something is known to be missing, or to go on."""
        return any(
            not over or any((destination, uid) not in self.here for uid in listed)
            for _, over, listed, _ in self.touching(destination, study)
        )

    def whole_since(self, destination: int, study: str) -> float | None:
        """Since when the study is completely announced and here: its own last instance, the announcements' last change, and the
        last announced instance, which may be one of another study: finalize looks at both when that one's grace is over."""
        found = self.touching(destination, study)
        announced = [self.here.get((destination, uid), 0.0) for _, _, listed, _ in found for uid in listed]
        if self.incomplete(destination, study) or not announced:
            return None
        return max([self.last[destination, study], *(at for *_, at in found), *announced])


class History:
    """Plays a history against the program and the model."""

    def __init__(self, world: World, steps: list[Step]) -> None:
        self.world = world
        self.steps = steps
        self.model = Model()
        self.said: tuple[str, Step] | None = None

    def arrive(self, uids: list[str], to: tuple[int, ...]) -> None:
        self.world.arrive(*(file(uid, INSTANCES[uid], SERIES[uid]) for uid in uids), to=to)
        for uid in uids:
            for destination in to:
                if (destination, uid) not in self.model.here:
                    self.model.here[destination, uid] = self.model.now
                    self.model.last[destination, INSTANCES[uid]] = self.model.now

    def say(self, kind: str, step: Step) -> None:
        """A message of the modality. One that was stored already changes nothing."""
        self.said = (kind, step)
        known = self.model.steps.get(step.uid)
        if kind == "create":
            assert self.world.create(step.uid, step.studies) == (known is None)
            if known is None:
                self.model.steps[step.uid] = (step, False, (), self.model.now)
            return
        listed = step.listed if kind == "end" else step.listed[:1]
        series = {SERIES[uid] for uid in listed}
        named = [Series(s, frozenset(uid for uid in listed if SERIES[uid] == s)) for s in sorted(series)]
        self.world.set(step.uid, step.end if kind == "end" else "IN PROGRESS", *named)
        if known is not None and not known[1]:
            self.model.steps[step.uid] = (step, kind == "end", listed, self.model.now)

    def wait(self, seconds: float) -> None:
        self.world.wait(seconds)
        self.model.now += seconds

    def finalize(self) -> None:
        result = finalize.run(self.world.settings)
        names = dict(rows(self.world.database, "SELECT name, id FROM storage_backend_configs"))
        for ready in result.ready:
            where = (names[ready.destination], ready.study_instance_uid)
            assert not self.model.incomplete(*where), f"{ready} goes although something is missing"
        for destination, study in rows(
            self.world.database, "SELECT destination_id, study_instance_uid FROM exam_batches WHERE status = 'PENDING'"
        ):
            since = self.model.whole_since(destination, study)
            assert since is None or self.model.now - since <= GRACE + 0.1, f"{study} waits although it is whole"

    def play(self, happens: list[tuple[object, ...]]) -> None:
        for what, *values in happens:
            if what == "arrive":
                self.arrive(*values)  # type: ignore[arg-type]
            elif what in {"create", "progress", "end"}:
                self.say(str(what), self.steps[values[0]])  # type: ignore[index]
            elif what == "again":
                if self.said is not None:
                    self.say(*self.said)
            else:
                self.wait(values[0])  # type: ignore[arg-type]
                self.finalize()
                if values[1]:
                    self.world.send()

    def finish(self) -> None:
        """All that is still to come comes; then the timers go on."""
        self.arrive(sorted(INSTANCES), DESTINATIONS)
        for _ in range(3):
            self.wait(QUIET + 1)
            self.finalize()
            self.world.send()


@pytest.fixture(scope="module")
def clean() -> list[str]:
    return ["study_expectations", "study_series", "exam_batches", "storage_backend_configs"]


@settings(max_examples=rounds(25), deadline=None, suppress_health_check=list(HealthCheck))
@given(history=histories())
def test_any_history_ends_with_each_instance_sent_once_to_each_destination(
    settings: Settings,
    database: engine.Database,
    clean: list[str],
    history: tuple[list[Step], list[tuple[object, ...]]],
) -> None:
    execute(database, f"TRUNCATE {', '.join(clean)} RESTART IDENTITY CASCADE")
    world = World(settings, database)
    assert world.add("second") == 2
    steps, happens = history
    played = History(world, steps)
    played.play(happens)
    played.finish()
    assert set(world.states()) == {"SENT"}
    assert dict(world.sent) == {(d, uid): 1 for d in DESTINATIONS for uid in INSTANCES}
