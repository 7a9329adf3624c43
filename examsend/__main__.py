"""The entry point. It converts exceptions to one sentence on standard error and an exit code."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Any

from examsend import collector, signals


def main() -> None:
    """Run the command line; never returns normally."""
    signals.install()
    _open_standard_streams()
    code = 0
    try:
        code = _run()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of the output ended first (`examsend status | head`).
        _discard_output()
    except _OutputLostError as error:
        _say(f"the output could not be written: {error.strerror or error}")
        _discard_output()
        code = code or 1
    except KeyboardInterrupt:
        _say("interrupted")
        code = 130
    collector.keep()
    sys.exit(code)


def _open_standard_streams() -> None:
    """Open the standard streams that are closed (`>&-`), so that no file or connection gets their numbers.

    A closed standard output is opened for reading, so that writing to it fails as it should.
    """
    for number, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # the lowest free number is this one
    encoding, is_terminal = (sys.stdout.encoding, sys.stdout.isatty()) if sys.stdout is not None else ("utf-8", False)
    # An encoding that lacks a character of a path must not end the command.
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Output(1, "w", closefd=False)), encoding, "backslashreplace", line_buffering=is_terminal
    )
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115


class _OutputLostError(OSError):
    """Standard output cannot be written: a full disk, a closed stream. It is told from the errors of other files by its class."""


class _Output(io.FileIO):
    """Standard output."""

    def write(self, data: Any, /) -> int:
        """Write bytes. Raises BrokenPipeError if the reader has ended, _OutputLostError for every other error."""
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _OutputLostError(error.errno, error.strerror) from None


def _discard_output() -> None:
    """Send standard output nowhere. Python flushes it again at exit, which would fail again without this."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _say(sentence: str) -> None:
    with suppress(OSError):
        sys.stderr.write(f"examsend: {sentence}\n")
        sys.stderr.flush()


def _failed(code: str, sentence: str, exit_code: int) -> int:
    """Say why the command ends without a result: to people, and with --json to programs. Return the exit code."""
    if _is_check(sys.argv):
        sys.stdout.write(f"EXAMSEND UNKNOWN: {sentence}\n")
        return 3
    _say(sentence)
    _tell_programs(code, sentence, exit_code)
    return exit_code


def _tell_programs(code: str, sentence: str, exit_code: int) -> None:
    """With --json, write the error to standard output, which has no result then."""
    options = sys.argv[1:]
    if "--json" in (options[: options.index("--")] if "--" in options else options):
        from examsend.report.json import error_as_json

        sys.stdout.write(error_as_json(code, sentence, exit_code) + "\n")


def _run() -> int:
    with collector.paused():
        from examsend.cli import app
        from examsend.errors import ExamsendError
        from examsend.report.terminal import clean

    try:
        returned = app(standalone_mode=False, prog_name="examsend")
    except ExamsendError as error:
        code = _failed(error.code, clean(str(error)), error.exit_code)
        _trace()
        return code
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        return _failed("INTERRUPTED", "ended by SIGTERM", code) if code == 143 else code
    except (BrokenPipeError, _OutputLostError):
        raise
    except Exception as error:  # noqa: BLE001 (the last handler before the process ends)
        usage = _usage(error)
        if usage is not None:
            return usage
        # Only the first line of the message: the rest may contain bound values, such as a secret.
        lines = str(error).splitlines()
        what = clean(lines[0] if lines else "")[:300]
        code = _failed("BUG", f"this is a bug in examsend: {type(error).__name__}: {what} (-vv shows where)", 70)
        _trace()
        return code
    if returned == 130:
        # Typer's answer to a Ctrl-C that no command has met: it says nothing.
        return _failed("INTERRUPTED", "interrupted", 130)
    return returned if isinstance(returned, int) else 0


def _is_check(arguments: list[str]) -> bool:
    """Whether the command is ``status --check``, which answers a monitoring system as a Nagios plugin does: 3 is UNKNOWN."""
    return "status" in arguments[1:3] and "--check" in arguments


def _usage(error: Exception) -> int | None:
    """Given an exception, show it and return its exit code if Typer raised it for wrong usage; else return None.

    It is recognised by its attributes, because Typer versions differ in which exception classes they export.
    """
    show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
    if callable(show) and isinstance(code, int):
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        if _is_check(sys.argv):
            return _failed("USAGE", message.partition("\n")[0], code)
        with suppress(OSError):
            show()
        _tell_programs("USAGE", message, code)
        return code
    return _failed("INTERRUPTED", "interrupted", 130) if type(error).__name__ == "Abort" else None


def _trace() -> None:
    if "-vv" in sys.argv or sys.argv.count("-v") + sys.argv.count("--verbose") > 1:
        import traceback

        from examsend.report.terminal import clean

        # An exception may quote a peer or a file name.
        sys.stderr.writelines(f"{clean(line)}\n" for line in traceback.format_exc().rstrip("\n").split("\n"))


if __name__ == "__main__":
    main()
