"""Where a data set is read from: a file, or the deflated part of one."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from typing import Protocol

from examsend.errors import Incomplete, Unacceptable


class Source(Protocol):
    """The bytes of one data set, to be read forward."""

    size: int
    """Bytes of the data set."""

    def at(self, offset: int, length: int) -> bytes:
        """Given an offset in bytes from the data set's start, return ``length`` bytes (fewer at the end).

        An offset must not be smaller than that of the call before.
        """


class MemorySource:
    """A data set in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def at(self, offset: int, length: int) -> bytes:
        """See ``Source``."""
        return self._data[offset : offset + length]


class FileSource:
    """A data set in a file, read in windows of 16 KiB or more. Values that the caller skips are not read."""

    def __init__(self, fd: int, offset: int, size: int, head: bytes) -> None:
        """Given an open file, the data set's offset in it, the file's size and its first bytes, if they were read.

        Offsets and sizes are in bytes.
        """
        self._fd = fd
        self._offset = offset
        self.size = size - offset
        self._base = -offset
        self._window = head

    def at(self, offset: int, length: int) -> bytes:
        """See ``Source``."""
        start = offset - self._base
        window = self._window
        if start + length <= len(window):
            return window[start : start + length]
        if offset >= self.size:
            return b""
        if offset + length > self.size and start >= 0 and self._base + len(window) == self.size:
            return window[start:]
        self._window = os.pread(self._fd, max(length, 16384), offset + self._offset)
        self._base = offset
        return self._window[:length]


class ReadOnce:
    """A data set whose file is read once, in order. Every byte is passed to ``digest`` before ``at`` returns it.

    What is made from this source is therefore made from the bytes in the digest, even if the file changes meanwhile.
    """

    def __init__(self, read: Callable[[memoryview], int], digest: Callable[[memoryview], None], size: int) -> None:
        """Given ``read``, which fills a buffer with the next bytes and returns their number, and the size of the data set."""
        self._read = read
        self._digest = digest
        self.size = size
        self._base = 0
        self._window = b""

    def at(self, offset: int, length: int) -> bytes:
        """See ``Source``."""
        start = offset - self._base
        window = self._window
        if start + length <= len(window):
            return window[start : start + length]
        end = min(offset + length, self.size)
        pieces = [window[start:]]
        done = self._base + len(window)
        while done < end:
            piece = self._next(max(end - done, 16384))
            pieces.append(piece[max(offset - done, 0) :])
            done += len(piece)
        self._window = b"".join(pieces)
        self._base = offset
        return self._window[:length]

    def rest(self) -> None:
        """Read what is left."""
        self.at(self.size, 0)

    def _next(self, length: int) -> bytes:
        buffer = memoryview(bytearray(min(length, self.size, _LONGEST_READ)))
        data = buffer[: self._read(buffer)]
        self._digest(data)
        return bytes(data)


_LONGEST_READ = 1 << 20

MAX_INFLATED = 1 << 32
"""Bytes a deflated data set may inflate to. A larger one is rejected as an attack."""

_CHUNK = 1 << 18


class InflatedSource:
    """A deflated data set (PS3.5 A.5), inflated twice: first to check it and to learn its size, then to read it."""

    def __init__(self, read: Callable[[int, int], bytes], offset: int, size: int) -> None:
        """Given ``read(length, offset)`` of a file, the data set's offset in it and the file's size (bytes), inflate the data
        set once.

        Raises Incomplete where its last block is missing, Unacceptable where it cannot be inflated or is too large.
        """
        self._pread = read
        self._file = (offset, size)
        self.size = self._measure()
        self._restart()

    def _restart(self) -> None:
        self._read = self._file[0]
        self._inflater = zlib.decompressobj(-15)
        self._base = 0
        self._window = b""

    def _more(self) -> bytes:
        data = self._inflater.unconsumed_tail
        if not data:
            data = self._pread(min(_CHUNK, self._file[1] - self._read), self._read)
            self._read += len(data)
        try:
            return self._inflater.decompress(data, _CHUNK) if data else b""
        except zlib.error as error:
            raise Unacceptable("NOT_DEFLATED", f"the deflated data set cannot be inflated: {error}") from None

    def _measure(self) -> int:
        self._restart()
        total = 0
        while not self._inflater.eof:
            piece = self._more()
            total += len(piece)
            if total > MAX_INFLATED:
                raise Unacceptable("TOO_LARGE", f"the deflated data set inflates to more than {MAX_INFLATED} bytes")
            if not (piece or self._inflater.unconsumed_tail or self._read < self._file[1] or self._inflater.eof):
                raise Incomplete("TRUNCATED", "the deflated data set ends before its last block")
        return total

    def at(self, offset: int, length: int) -> bytes:
        """See ``Source``. Raises Unacceptable where the data set can no longer be inflated."""
        while offset + length > self._base + len(self._window) and not self._inflater.eof:
            # Bytes before the offset are not needed again.
            if offset >= self._base + len(self._window):
                self._base += len(self._window)
                self._window = b""
            elif offset > self._base:
                self._window = self._window[offset - self._base :]
                self._base = offset
            self._window += self._more()
        start = offset - self._base
        return self._window[start : start + length] if start >= 0 else b""
