"""A process that converts data sets for ``conversion``, one after the other: decoders may crash, hang, or need much memory.

It ends when its socket is closed, and with the process that started it. A job and its result are one message each, in JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import json
import os
import resource
import signal
import socket
import sys
import warnings
from typing import Any

from examsend.dicom.source import ReadOnce
from examsend.dicom.transcode import transcode
from examsend.dimse.conversion import LONGEST_MESSAGE, READY, unconvertible, unwritable
from examsend.dimse.payload import Payload, Unusable
from examsend.errors import FileProblem
from examsend.transfer import Item, Problem

_PR_SET_PDEATHSIG = 1

_MAX_RESULT = (1 << 32) + (1 << 26)
"""Bytes of the longest data set that is written: 4 GiB of pixel data, and the other elements."""

_PIECE = 1 << 20

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO})
"""What writing the result may fail with."""


def main() -> None:
    """Convert until the socket is closed: ``sys.argv`` has its descriptor, the process id of the parent, and the bytes of
    memory that may be used."""
    descriptor, parent, memory = (int(word) for word in sys.argv[1:4])
    _end_with(parent)
    # A sandbox may forbid limits; its own ones hold then.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_RESULT, _MAX_RESULT))
        # A crash leaves no dump: it would hold an image of a patient.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    with socket.socket(fileno=descriptor) as jobs:
        jobs.send(READY)
        while True:
            message, descriptors, _, _ = socket.recv_fds(jobs, LONGEST_MESSAGE, 1)
            if not message:
                return
            with io.FileIO(descriptors[0], "w") as output:
                result = _result(json.loads(message), output)
            jobs.send(json.dumps(result).encode())


def _end_with(parent: int) -> None:
    """See to it that this process is killed when its parent ends, also while it decodes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def _result(job: dict[str, Any], output: io.FileIO) -> dict[str, Any]:
    """Return the length of the converted data set in bytes, or the problem and a sentence."""
    item = Item(**{**job["item"], "content_digest": bytes.fromhex(job["item"]["content_digest"])})
    target = job["target"]
    try:
        return {"length": _convert(item, target, output)}
    except Unusable as unusable:
        return {"problem": unusable.problem, "sentence": str(unusable)}
    except OSError as error:
        if error.errno in _NO_ROOM:
            # It is tried again: there may be room then.
            return {"problem": Problem.UNREADABLE, "sentence": unwritable(error, job["directory"])}
        why = f"the decoder failed ({error.strerror or type(error).__name__})"
    except MemoryError:
        why = "it needs more memory than one conversion may use"
    except Exception as error:  # noqa: BLE001 (plug-ins raise whatever invalid pixel data leads to)
        why = f"the decoder failed ({type(error).__name__})"
    return {"problem": Problem.UNCONVERTIBLE, "sentence": unconvertible(item, target, why)}


def _convert(item: Item, target: str, output: io.FileIO) -> int:
    """Write the converted data set; return its length in bytes. Raises Unusable, OSError, and what decoders raise."""
    with Payload(item, item.transfer_syntax_uid) as payload:
        source = ReadOnce(payload.fill, payload.digest, payload.length)
        failure: Exception | None = None
        length = 0
        try:
            buffered = io.BufferedWriter(output, _PIECE)
            length = transcode(source, item.transfer_syntax_uid, target, buffered)
            buffered.flush()
        except Unusable:
            raise
        except Exception as error:  # noqa: BLE001 (whatever it is, a file that was changed is CHANGED)
            failure = error
        source.rest()
        payload.verify()
    if isinstance(failure, FileProblem):
        raise Unusable(Problem.UNCONVERTIBLE, str(failure))
    if failure is not None:
        raise failure
    return length


if __name__ == "__main__":
    main()
