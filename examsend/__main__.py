"""The entry point: one place where an exception becomes a sentence and an exit code."""

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
        # Whoever read our output has gone (`examsend status | head`): nothing to tell them.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _run() -> int:
    import click

    from examsend.cli import app
    from examsend.errors import ExamsendError
    from examsend.report import clean

    try:
        returned = app(standalone_mode=False, prog_name="examsend")
    except click.exceptions.Abort:
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ExamsendError as error:
        sys.stderr.write(f"examsend: {clean(str(error))}\n")
        _trace()
        return error.exit_code
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 (the one place)
        # No locals, no parameters: they may hold a secret.
        lines = str(error).splitlines()
        sys.stderr.write(
            f"examsend: this is a bug in examsend: {type(error).__name__}: {clean(lines[0] if lines else '')[:300]}"
            " (-vv shows where)\n"
        )
        _trace()
        return 70
    return returned if isinstance(returned, int) else 0


def _trace() -> None:
    if "-vv" in sys.argv or sys.argv.count("-v") + sys.argv.count("--verbose") > 1:
        import traceback

        traceback.print_exc()


if __name__ == "__main__":
    main()
