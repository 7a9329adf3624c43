"""Shows what ``status`` says of the rejected files of one study."""

from __future__ import annotations

from examsend.commands.status import StatusResult
from examsend.report.rejected import listed
from examsend.states import BatchState


def rejections(result: StatusResult) -> list[str]:
    """Return a sentence about the rejected files of the study that is shown, and a line for each; nothing if it has none."""
    opened = [file for file in result.rejected if file.dismissed_at is None]
    if not result.rejected:
        return []
    lines: list[str] = []
    of_study = result.study_instance_uid is not None and opened
    if of_study:
        files = "1 file was" if len(opened) == 1 else f"{len(opened)} files were"
        if not result.batches:
            lines.append(f"nothing of it is registered: {files} rejected")
        elif all(b.status == BatchState.SENT for b in result.batches):
            lines.append(f"not complete at the archive: {files} rejected")
        else:
            lines.append(f"{files} rejected, and will be missing at the archive")
    return [*lines, *(f"rejected: {line}" for line in listed(result.rejected))]
