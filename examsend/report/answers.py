"""Shows the answers to what an operator asks of batches (``queue.requests``)."""

from __future__ import annotations

from examsend.queue.requests import Answers


def lines(answers: Answers, met: str, *remarks: str) -> list[str]:
    """Return a line for each batch, and the remarks where the request was met for one. ``met``: what is said of such a batch, as
    "is held now"."""
    done = [
        f"batch {d.id} ({d.status}, {d.destination}, study {d.study_instance_uid}) {met}: {d.waiting_for}"
        for d in answers.done
    ]
    return [*done, *(remarks if done else ()), *(r.sentence for r in answers.refused)]
