"""A modality's performed procedure steps: sends each JSON line of standard input as a step, and prints its UID once it is answered.

    python -m bench.soak.steps HOST PORT

A line is an object with ``uid``, ``study`` and ``series``: SOP Instance UIDs by Series Instance UID.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE

MPPS = "1.2.840.10008.3.1.2.3.3"
CT = "1.2.840.10008.5.1.4.1.1.2"

_IS_THERE = 0x0111
_ENDED_ALREADY = 0x0110


def _item(**values: object) -> Dataset:
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def _references(uids: list[str]) -> list[Dataset]:
    return [_item(ReferencedSOPClassUID=CT, ReferencedSOPInstanceUID=uid) for uid in uids]


def _send(host: str, port: int, step: dict[str, Any]) -> bool:
    """Send a whole step; return whether all of it was answered with success, now or before."""
    ae = AE("CT1")
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = 10
    ae.add_requested_context(MPPS)
    association = ae.associate(host, port, ae_title="EXAMSEND")
    try:
        if not association.is_established:
            return False
        begun = _item(
            PerformedProcedureStepStatus="IN PROGRESS",
            ScheduledStepAttributesSequence=[_item(StudyInstanceUID=step["study"])],
            PerformedSeriesSequence=[],
        )
        answer, _ = association.send_n_create(begun, MPPS, step["uid"])
        # A step whose answer was lost is there already.
        if answer.get("Status") not in (0, _IS_THERE):
            return False
        made = [_item(SeriesInstanceUID=s, ReferencedImageSequence=_references(u)) for s, u in step["series"].items()]
        ended = _item(PerformedProcedureStepStatus="COMPLETED", PerformedSeriesSequence=made)
        answer, _ = association.send_n_set(ended, MPPS, step["uid"])
        return answer.get("Status") in (0, _ENDED_ALREADY)
    except (RuntimeError, ValueError):  # the association ended between two messages
        return False
    finally:
        if association.is_established:
            association.release()
        else:
            association.abort()


def main() -> None:
    """Send each step until it is answered."""
    host, port = sys.argv[1], int(sys.argv[2])
    for line in sys.stdin:
        step = json.loads(line)
        for _ in range(120):
            if _send(host, port, step):
                print(step["uid"], flush=True)
                break
            time.sleep(1)


if __name__ == "__main__":
    main()
