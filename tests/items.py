"""Files as items to send."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from examsend.dicom import identity
from examsend.transfer import Item


def items_of(paths: Iterable[Path]) -> list[Item]:
    """Return files as items, numbered in order."""
    found = enumerate((str(path), identity.inspect(path)) for path in paths)
    return [
        Item(
            n,
            path,
            f.sop_class_uid,
            f.sop_instance_uid,
            f.transfer_syntax_uid,
            f.size,
            f.mtime_ns,
            f.dataset_offset,
            f.content_digest,
        )
        for n, (path, f) in found
    ]
