"""A file's data set as bytes for the wire, proved to be what was ingested before its last byte leaves.

Read with ``preadv`` into a buffer of the caller's, never mapped: a mapped file that is cut short under a reader ends the
process (SIGBUS).
"""

from __future__ import annotations

import errno
import hashlib
import os
from types import TracebackType
from typing import Self

from examsend.errors import FileProblem
from examsend.transfer import Item, Problem


class Unusable(Exception):
    """The item cannot be offered: ``problem`` and a sentence."""

    def __init__(self, problem: Problem, sentence: str) -> None:
        super().__init__(sentence)
        self.problem = problem


class Payload:
    """An open data set: ``length`` bytes, read in order. Raises Unusable from everything it does.

    Where ``target`` is not the file's own transfer syntax the data set is re-encoded first (native syntaxes only).
    """

    def __init__(self, item: Item, target: str) -> None:
        self._item = item
        self._fd = _open(item)
        self._digest = hashlib.sha256()
        self._pos = item.dataset_offset
        self._recoded: bytes | None = None
        self._taken = 0
        self.length = item.file_size - item.dataset_offset
        try:
            if os.fstat(self._fd).st_size != item.file_size:
                raise _changed()
            if target != item.transfer_syntax_uid:
                self._recode(target)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read_into(self, buffer: memoryview) -> int:
        """Fill a buffer as far as there is data and take its digest; return the bytes read, 0 at the end."""
        count = self.fill(buffer)
        self.digest(buffer[:count])
        return count

    def digest(self, data: memoryview) -> None:
        """Take the digest of bytes that ``fill`` gave, in their order. Lets other threads run meanwhile."""
        if self._recoded is None:
            self._digest.update(data)

    def fill(self, buffer: memoryview) -> int:
        """Fill a buffer as far as there is data; return the bytes read, 0 at the end. Their digest is the caller's to take."""
        if self._recoded is not None:
            piece = self._recoded[self._taken : self._taken + len(buffer)]
            buffer[: len(piece)] = piece
            self._taken += len(piece)
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
        return done

    def verify(self) -> None:
        """After the last byte was read: raise Unusable unless they were what was ingested."""
        if self._recoded is None and self._digest.digest() != self._item.content_sha256:
            raise _changed()

    def _recode(self, target: str) -> None:
        """Prove the source first, then convert it: one object in memory, as large as its file."""
        from examsend.dicom import recode

        buffer = memoryview(bytearray(1 << 20))
        while self.read_into(buffer):
            pass
        self.verify()
        item = self._item
        try:
            self._recoded = recode.recode(item.path, item.dataset_offset, item.transfer_syntax_uid, target)
        except FileProblem as problem:
            raise Unusable(Problem.UNCONVERTIBLE, str(problem)) from None
        except OSError as error:
            raise _unreadable(error) from None
        self.length = len(self._recoded)


def _open(item: Item) -> int:
    try:
        return os.open(item.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        # A file or a directory above it that is gone is missing; anything else may pass.
        if error.errno in {errno.ENOENT, errno.ENOTDIR}:
            raise Unusable(Problem.MISSING, "the file is gone") from None
        raise _unreadable(error) from None


def _changed() -> Unusable:
    return Unusable(Problem.CHANGED, "the file is not what was ingested: its size or digest has changed")


def _unreadable(error: OSError) -> Unusable:
    return Unusable(Problem.UNREADABLE, f"the file cannot be read: {error.strerror or error}")
