"""What an archive's answers to C-FIND say of the instances that were stored there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from examsend.dimse.query import StudyFound
from examsend.queue.confirmation import Stored
from examsend.queue.verdicts import Answered
from examsend.states import Proof, Verdict


def answers(found: StudyFound, asked: Sequence[Stored], stored: Mapping[str | None, int]) -> list[Answered]:
    """Given what an archive says of a study, the instances that are asked about, and {Series Instance UID: instances that were
    stored there}, return its answer about each instance.

    An instance is absent only where the archive has listed each instance that it says the study has, or does not know the study.
    Where it lists none of a series, the number decides: fewer than were stored does not say which are missing.
    """
    if found.count is None:
        return []
    of_series = {uid: number for uid, number in found.series_counts.items() if number is not None}
    enough = not found.listed and found.count >= sum(stored.values())
    return [_answer(found, one, of_series, stored, study_is_enough=enough) for one in asked]


def _answer(
    found: StudyFound,
    one: Stored,
    of_series: Mapping[str, int],
    stored: Mapping[str | None, int],
    *,
    study_is_enough: bool,
) -> Answered:
    series = one.series_instance_uid
    if one.sop_instance_uid in found.listed:
        return Answered(one.id, Verdict.CONFIRMED, Proof.LISTED)
    if found.count == 0:
        return Answered(one.id, Verdict.ABSENT, reason="the archive does not know the study")
    if found.series is not None:
        return Answered(one.id, Verdict.ABSENT, reason="the archive does not list it")
    if not found.listed and series is not None and series in of_series:
        number, sent = of_series[series], stored.get(series, 0)
        if number >= sent:
            said = f"the archive has {number} instances of the series, of which {sent} were sent"
            return Answered(one.id, Verdict.CONFIRMED, Proof.COUNTED, reason=said)
        said = f"the archive has {number} of {sent} instances of the series, and does not list them"
        return Answered(one.id, Verdict.LATER, reason=said)
    if study_is_enough:
        said = f"the archive has {found.count} instances of the study, of which {sum(stored.values())} were sent"
        return Answered(one.id, Verdict.CONFIRMED, Proof.COUNTED, reason=said)
    listed = f"{len(found.listed)} of them" if found.listed else "none of them"
    said = f"the archive has {found.count} instances of the study, lists {listed}, and not this one"
    return Answered(one.id, Verdict.LATER, reason=said)
