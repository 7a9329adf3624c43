"""Read a file's data set for sending, and check its digest before the last byte is sent.

Files are read with ``preadv`` into a buffer of the caller, never mapped: where a mapped file is truncated while it is read,
the process is killed (SIGBUS).
"""

from __future__ import annotations

import errno
import os
from types import TracebackType
from typing import Self

from examsend.dicom.digest import Digest
from examsend.dicom.uids import DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN
from examsend.errors import FileProblem
from examsend.transfer import Item, Problem


class Unusable(Exception):
    """The item cannot be sent: ``problem`` and a sentence about it."""

    def __init__(self, problem: Problem, sentence: str) -> None:
        super().__init__(sentence)
        self.problem = problem


class OpenFile:
    """A file that is closed at the end of a ``with`` statement, or by ``close``."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. May be called more than once."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Payload(OpenFile):
    """An open data set of ``length`` bytes, read in order. Every method but ``close`` may raise Unusable.

    Where ``target`` is not the file's own transfer syntax, the data set is first re-encoded (native syntaxes only). The file is
    opened once, and every byte of it is read once.

    A data set of odd length is not sent (PS3.5 7.1, PS3.8 E.1). A deflated one of odd length gets the NULL byte of PS3.5 A.5,
    which is not part of the data set.
    """

    def __init__(self, item: Item, target: str) -> None:
        super().__init__(_open(item))
        self._item = item
        self._digest = Digest()
        self._pos = item.dataset_offset
        self._recoded: bytes | None = None
        self._recoded_pos = 0
        self.length = item.file_size - item.dataset_offset
        self._undigested = self.length
        self._pad = False
        try:
            if os.fstat(self._fd).st_size != item.file_size:
                raise _changed()
            if target != item.transfer_syntax_uid:
                self._recode(target)
            if self.length % 2:
                if target != DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
                    raise Unusable(Problem.ODD_LENGTH, f"the data set has an odd length of {self.length} bytes")
                self._pad = True
                self.length += 1
        except BaseException:
            self.close()
            raise

    def read_into(self, buffer: memoryview) -> int:
        """Fill a buffer as ``fill`` does and add the bytes to the digest; return the number of bytes read, 0 at the end."""
        count = self.fill(buffer)
        self.digest(buffer[:count])
        return count

    def digest(self, data: memoryview) -> None:
        """Add bytes that ``fill`` read to the digest, in order. Releases the interpreter lock for large buffers."""
        if self._recoded is None:
            data = data[: self._undigested]  # without the pad byte
            self._undigested -= len(data)
            self._digest.update(data)

    def fill(self, buffer: memoryview) -> int:
        """Read into a buffer until it is full or the data ends; return the number of bytes read, 0 at the end.

        The caller must pass the bytes to ``digest``.
        """
        if self._recoded is not None:
            piece = self._recoded[self._recoded_pos : self._recoded_pos + len(buffer)]
            buffer[: len(piece)] = piece
            self._recoded_pos += len(piece)
            return len(piece)
        wanted = min(len(buffer), self._item.file_size - self._pos)
        done = 0
        while done < wanted:
            try:
                count = os.preadv(self._fd, [buffer[done:wanted]], self._pos)
            except OSError as error:
                raise _unreadable(error) from None
            if count == 0:
                raise _changed()
            self._pos += count
            done += count
        if self._pad and self._pos == self._item.file_size and done < len(buffer):
            buffer[done] = 0
            done += 1
            self._pad = False
        return done

    def verify(self) -> None:
        """Once all bytes are read and in the digest: raise Unusable (CHANGED) unless it is the digest of the ingested file."""
        if self._recoded is None and self._digest.digest() != self._item.content_digest:
            raise _changed()

    def _recode(self, target: str) -> None:
        """Convert the data set, and check the digest of the bytes that were converted. Holds the whole of it in memory."""
        from examsend.dicom import recode
        from examsend.dicom.source import ReadOnce

        source = ReadOnce(self.fill, self.digest, self.length)
        refused: FileProblem | None = None
        recoded = b""
        try:
            recoded = recode.recode(source, self._item.transfer_syntax_uid, target)
        except FileProblem as problem:
            refused = problem
        source.rest()
        self.verify()
        if refused is not None:
            raise Unusable(Problem.UNCONVERTIBLE, str(refused))
        self._recoded = recoded
        self.length = len(recoded)


def _open(item: Item) -> int:
    try:
        return os.open(item.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise out_of_reach(error) from None


def out_of_reach(error: OSError) -> Unusable:
    """Given why a file cannot be opened or looked at, return what that means: a file that does not exist is MISSING, and other
    errors may be temporary."""
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        return Unusable(Problem.MISSING, "the file does not exist")
    return _unreadable(error)


def _changed() -> Unusable:
    return Unusable(Problem.CHANGED, "the file was changed after it was ingested: its size or digest differs")


def _unreadable(error: OSError) -> Unusable:
    return Unusable(Problem.UNREADABLE, f"the file cannot be read: {error.strerror or error}")
