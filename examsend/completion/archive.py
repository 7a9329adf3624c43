"""Ask archives how many instances a study has, and which (C-FIND)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from examsend.db.engine import Connection, Database
from examsend.db.patience import Until, no_limit
from examsend.dimse.query import find_study
from examsend.errors import UsageError
from examsend.queue import questions
from examsend.queue.addressee import peer_of
from examsend.queue.questions import APART as APART
from examsend.transfer import Peer

QUESTION_SECONDS = 10.0
"""How long one question may take."""

_PASS_SECONDS = 30.0
"""How long all questions of a pass may take."""

_PASS_QUESTIONS = 20

_ROUNDS = 10
"""Groups of batches that a pass looks at, at most."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An archive's answer about a study."""

    count: int | None
    """Number of its instances; 0: the archive does not know it; None: no answer."""
    series: Mapping[str, frozenset[str]] | None
    """{Series Instance UID: SOP Instance UIDs}; None where the archive gave only the number."""
    failure: str = ""
    """Why there is no answer."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A study that an archive was asked about."""

    study_instance_uid: str
    archive: str
    instances: int | None
    """0: the archive does not know the study; None: no answer."""
    confirmed: bool
    """The archive has given this answer twice, apart in time: it is believed."""
    failure: str = ""


def ask(peer: Peer, study: str, seconds: float = QUESTION_SECONDS) -> Answer:
    """Ask an archive about a study, for at most ``seconds``. Raises nothing for what the archive does."""
    found = find_study(peer, study, seconds)
    return Answer(found.count, found.series, found.sentence)


def store(tx: Connection, study: str, archive_name: str, answer: Answer, *, revive: bool = True) -> Asked:
    """Store an archive's answer. It is confirmed when the archive gives it twice, at least ``APART`` seconds apart.

    ``revive``: also where an operator has withdrawn what this archive has announced.
    """
    if answer.count is None:
        questions.store_failure(tx, study, archive_name, answer.failure)
        return Asked(study, archive_name, None, confirmed=False, failure=answer.failure)
    confirmed = questions.store_answer(tx, study, archive_name, answer.count, answer.series, revive=revive)
    return Asked(study, archive_name, answer.count, confirmed)


def record(database: Database, study: str, archive_name: str, answer: Answer, *, revive: bool = True) -> Asked:
    """Store an archive's answer, and then when it is asked next."""
    asked = database.run(lambda tx: store(tx, study, archive_name, answer, revive=revive), idempotent=True)
    # A transaction of its own: it locks batches, and the first one announcements. Another may lock them in the other order.
    database.run(lambda tx: questions.schedule(tx, study, archive_name), idempotent=True)
    return asked


def ask_due(database: Database, until: Until = no_limit) -> list[Asked]:
    """Ask the archives of destinations (``expect_from``) about quiet studies that are due, and store the answers.

    At most 20 questions, and 30 seconds, none beyond ``until()``. An archive that did not answer is not asked again in this
    pass. No transaction is open meanwhile. Raises DatabaseUnavailable; what was claimed is then asked again after a minute.
    """
    deadline = time.monotonic() + _PASS_SECONDS
    waiting: list[questions.Question] = []
    for _ in range(_ROUNDS):
        room = _PASS_QUESTIONS - len(waiting)
        claimed, more = database.run(lambda tx, room=room: questions.claim(tx, room))  # type: ignore[misc]
        waiting += claimed
        if not more:
            break
    silent: dict[str, str] = {}
    asked: list[Asked] = []
    for n, question in enumerate(waiting):
        seconds = min(QUESTION_SECONDS, min(deadline, until()) - time.monotonic())
        if seconds < 1:
            left = waiting[n:]
            database.run(lambda tx, left=left: questions.give_back(tx, left), idempotent=True)  # type: ignore[misc]
            break
        failure = silent.get(question.archive)
        answer = _asked(database, question, seconds) if failure is None else Answer(None, None, failure)
        if answer.count is None:
            silent.setdefault(question.archive, answer.failure)
        asked.append(record(database, question.study_instance_uid, question.archive, answer, revive=False))
    return asked


def _asked(database: Database, question: questions.Question, seconds: float) -> Answer:
    try:
        peer = database.run(lambda tx: peer_of(tx, question.archive, question.calling_aet))
    except UsageError as error:
        return Answer(None, None, str(error))
    return ask(peer, question.study_instance_uid, seconds)
