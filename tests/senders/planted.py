"""A worker whose decoder does what the name of a file says; run as ``python -m tests.senders.planted``.

crash-SIGSEGV: it is ended by that signal. hang: it never ends. full: there is no room for the result. hungry: it needs more memory
than there is. error: it raises. Other files are converted. hang writes the process id beside the file first.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

from examsend.dimse import worker

_real_convert, _real_transcode = worker._convert, worker.transcode
_name = Path()


def _convert(item: Any, *others: Any) -> int:
    global _name
    _name = Path(item.path)
    return _real_convert(item, *others)


def _transcode(*arguments: Any) -> int:
    what, _, which = _name.stem.partition("-")
    if what == "crash":
        os.kill(os.getpid(), signal.Signals[which])
    if what == "hang":
        _name.with_suffix(".pid.part").write_text(str(os.getpid()))
        _name.with_suffix(".pid.part").rename(_name.with_suffix(".pid"))
        # A decoder in C would not give up the interpreter either; signals must end it all the same.
        while True:
            time.sleep(60)
    if what == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if what == "hungry":
        bytearray(1 << 42)
    if what == "error":
        raise RuntimeError("any text")
    return _real_transcode(*arguments)


if __name__ == "__main__":
    worker._convert, worker.transcode = _convert, _transcode
    worker.main()
