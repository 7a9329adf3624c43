"""The entry point. It converts exceptions to one sentence on standard error and an exit code."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def _end(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(143)


def main() -> None:
    """Run the command line; never returns normally."""
    signal.signal(signal.SIGTERM, _end)
    code = 0
    try:
        code = _run()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of the output ended first (`examsend status | head`). Python flushes standard output again at exit,
        # which would fail without this.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _run() -> int:
    from examsend.cli import app
    from examsend.errors import ExamsendError
    from examsend.report.terminal import clean

    try:
        returned = app(standalone_mode=False, prog_name="examsend")
    except ExamsendError as error:
        sys.stderr.write(f"examsend: {clean(str(error))}\n")
        _trace()
        return error.exit_code
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 (the last handler before the process ends)
        usage = _usage(error)
        if usage is not None:
            return usage
        # Only the first line of the message: the rest may contain bound values, such as a secret.
        lines = str(error).splitlines()
        sys.stderr.write(
            f"examsend: this is a bug in examsend: {type(error).__name__}: {clean(lines[0] if lines else '')[:300]}"
            " (-vv shows where)\n"
        )
        _trace()
        return 70
    return returned if isinstance(returned, int) else 0


def _usage(error: Exception) -> int | None:
    """Given an exception, show it and return its exit code if Typer raised it for wrong usage; else return None.

    It is recognised by its attributes, because Typer versions differ in which exception classes they export.
    """
    show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
    if callable(show) and isinstance(code, int):
        show()
        return code
    return 130 if type(error).__name__ == "Abort" else None


def _trace() -> None:
    if "-vv" in sys.argv or sys.argv.count("-v") + sys.argv.count("--verbose") > 1:
        import traceback

        from examsend.report.terminal import clean

        # An exception may quote a peer or a file name.
        sys.stderr.writelines(f"{clean(line)}\n" for line in traceback.format_exc().rstrip("\n").split("\n"))


if __name__ == "__main__":
    main()
