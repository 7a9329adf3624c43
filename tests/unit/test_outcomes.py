"""The outcome of each status, problem and end of an association."""

from __future__ import annotations

import pytest

from examsend import outcomes
from examsend.outcomes import DestinationAction
from examsend.transfer import Answer, AssociationEnd, End, Item, NotOffered, Problem

ITEM = Item(1, "/f", "1", "2", "3", 0, 0, 0, b"")


@pytest.mark.parametrize(
    ("status", "first", "second"),
    [
        (0x0000, "STORED", "STORED"),
        (0xB000, "STORED", "STORED"),
        (0xB006, "STORED", "STORED"),
        (0xB007, "STORED", "STORED"),
        (0xB123, "STORED", "STORED"),
        (0x0111, "STORED", "STORED"),
        (0xA700, "RETRY", "RETRY"),
        (0xA7FF, "RETRY", "RETRY"),
        (0x0213, "RETRY", "RETRY"),
        (0x0110, "RETRY", "RETRY"),
        (0x0210, "RETRY", "RETRY"),
        (0x1234, "RETRY", "RETRY"),
        (0xFF00, "RETRY", "RETRY"),
        (0xA900, "RETRY", "FAILED"),
        (0xC000, "RETRY", "FAILED"),
        (0xCFFF, "RETRY", "FAILED"),
        (0x0117, "RETRY", "FAILED"),
        (0x0212, "RETRY", "FAILED"),
        (0x0122, "FAILED", "FAILED"),
        (0x0124, "RETRY", "RETRY"),
        (0x0211, "RETRY", "RETRY"),
    ],
)
def test_outcome_of_a_status_at_the_first_and_second_try(status: int, first: str, second: str) -> None:
    answer = Answer(ITEM, status)
    assert outcomes.of_answer(answer, 0).outcome == first
    assert outcomes.of_answer(answer, 1).outcome == second


def test_only_a_duplicate_is_a_conflict_where_other_content_may_be_stored() -> None:
    assert outcomes.of_answer(Answer(ITEM, 0x0111), 0, other_content_possible=True).outcome == "CONFLICT"
    assert outcomes.of_answer(Answer(ITEM, 0x0000), 0, other_content_possible=True).outcome == "STORED"
    assert outcomes.of_answer(Answer(ITEM, 0xB007), 0, other_content_possible=True).outcome == "STORED"


@pytest.mark.parametrize(
    ("status", "action", "ends"),
    [
        (0xA700, DestinationAction.BACK_OFF, True),
        (0x0213, DestinationAction.BACK_OFF, True),
        (0x0124, DestinationAction.HOLD, True),
        (0x0211, DestinationAction.HOLD, True),
        (0xC000, DestinationAction.NONE, False),
        (0x0110, DestinationAction.NONE, False),
    ],
)
def test_destination_action_of_a_status(status: int, action: DestinationAction, ends: bool) -> None:
    result = outcomes.of_answer(Answer(ITEM, status), 0)
    assert (result.action, result.ends_association) == (action, ends)


@pytest.mark.parametrize(
    ("end", "answered", "action"),
    [
        (AssociationEnd(End.RELEASED, established=True), 3, DestinationAction.NONE),
        (AssociationEnd(End.REJECTED, result=1, source=1, reason=7), 0, DestinationAction.HOLD),
        (AssociationEnd(End.REJECTED, result=2, source=3, reason=1), 0, DestinationAction.BACK_OFF),
        (AssociationEnd(End.UNREACHABLE), 0, DestinationAction.BACK_OFF),
        (AssociationEnd(End.TLS_FAILED), 0, DestinationAction.BACK_OFF),
        (AssociationEnd(End.MISCONFIGURED), 0, DestinationAction.HOLD),
        (AssociationEnd(End.TIMED_OUT), 0, DestinationAction.BACK_OFF),
        (AssociationEnd(End.TIMED_OUT, established=True), 0, DestinationAction.BACK_OFF),
        (AssociationEnd(End.TIMED_OUT, established=True), 1, DestinationAction.NONE),
        (AssociationEnd(End.ABORTED, established=True), 0, DestinationAction.BACK_OFF),
        (AssociationEnd(End.CLOSED, established=True), 0, DestinationAction.BACK_OFF),
        (AssociationEnd(End.CLOSED, established=True), 5, DestinationAction.NONE),
        (AssociationEnd(End.STOPPED, established=True), 0, DestinationAction.NONE),
    ],
)
def test_destination_action_of_the_end_of_an_association(
    end: AssociationEnd, answered: int, action: DestinationAction
) -> None:
    assert outcomes.of_end(end, answered) == action


@pytest.mark.parametrize("end", End)
def test_every_end_of_an_association_has_a_meaning(end: End) -> None:
    assert outcomes.of_end(AssociationEnd(end), 0) in DestinationAction


def test_an_instance_has_never_more_strikes_than_its_batch_may_have_attempts() -> None:
    assert [outcomes.last_strike(trouble, 10) for trouble in outcomes.Trouble] == [3, 10, 10]
    assert [outcomes.last_strike(trouble, 2) for trouble in outcomes.Trouble] == [2, 2, 2]


@pytest.mark.parametrize("problem", Problem)
def test_every_problem_of_a_file_has_an_outcome(problem: Problem) -> None:
    result = outcomes.of_problem(NotOffered(ITEM, problem, "why\x00not" * 100))
    assert result.outcome in {"CHANGED", "MISSING", "RETRY", "FAILED"}
    assert "\x00" not in (result.comment or "")
    assert not result.offered


def test_back_off_doubles_up_to_the_longest_pause_less_jitter() -> None:
    assert [outcomes.back_off(30, 600, n, 0) for n in (1, 2, 3, 4, 5, 6, 60)] == [30, 60, 120, 240, 480, 600, 600]
    assert outcomes.back_off(30, 600, 1, 1) == 24


def test_status_text_has_number_and_name() -> None:
    assert outcomes.status_text(0xA700) == "A700 out of resources"
    assert outcomes.status_text(0xC123) == "C123 cannot understand"
    assert outcomes.status_text(0x0666) == "0666 unknown status"
