"""Another file with the same content stands in for a file that is gone, as in the middle of a move."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from examsend.queue.instances import Elsewhere, Unsent


def present(unsent: Sequence[Unsent]) -> list[Unsent]:
    """Return the instances, those whose files are gone with another file if there is one."""
    return [_with(u, found) if (found := other_file(u)) is not None else u for u in unsent]


def other_file(unsent: Unsent) -> Elsewhere | None:
    """Return another file of an instance; None: its own file is there, or there is no other."""
    if not unsent.elsewhere or os.path.lexists(unsent.item.path):
        return None
    return next((e for e in unsent.elsewhere if os.path.lexists(e.path)), None)


def _with(unsent: Unsent, found: Elsewhere) -> Unsent:
    item = dataclasses.replace(
        unsent.item,
        path=found.path,
        file_size=found.file_size,
        file_mtime_ns=found.file_mtime_ns,
        dataset_offset=found.dataset_offset,
        transfer_syntax_uid=found.transfer_syntax_uid,
    )
    return dataclasses.replace(unsent, item=item, mount_point=found.mount_point)
