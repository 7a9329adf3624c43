"""Records ``examsend demo`` in a terminal of 100 x 28: docs/demo.cast (asciinema, version 2) and docs/demo.svg, drawn from it.

python docs/recording.py [--draw]

``--draw`` draws the picture again from the recording that is there. It needs the package pyte (group ``dev``).
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time
from html import escape
from pathlib import Path

import pyte

HERE = Path(__file__).parent
COLUMNS, ROWS = 100, 28
_LONGEST = 300.0
"""Seconds that the demo may take."""
_IDLE = 1.0
"""Longer pauses are shown as this many seconds."""
_FRAME = 0.15
"""Seconds between two pictures, at least."""
_END = 6.0
"""Seconds for which the last picture stays."""

_WIDE, _HIGH, _SIZE, _EDGE = 8.0, 18.0, 13.5, 14.0
_HARD_SPACE = "\N{NO-BREAK SPACE}"
"""Spaces in a row are drawn as one by some programs."""
_BACKGROUND, _TEXT = "#1b1e24", "#d5d8de"
_COLOURS = {
    "black": "#3a3f4b",
    "red": "#e06c75",
    "green": "#8cc570",
    "brown": "#d9b36c",
    "blue": "#6cb2eb",
    "magenta": "#c792d9",
    "cyan": "#5fc0c4",
    "white": "#e6e9ee",
}


def record() -> list[tuple[float, str]]:
    """Run the demo in a pseudo terminal; return (seconds since the beginning, text) of what it writes."""
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    command = "examsend demo"
    with tempfile.TemporaryDirectory() as home:
        environment = {
            "PATH": os.environ["PATH"], "HOME": home, "TERM": "xterm-256color", "LANG": "C.UTF-8",
            "PYTHONPATH": os.pathsep.join(sys.path[1:]),
        }  # fmt: skip
        began = time.monotonic()
        words = [sys.executable, "-m", "examsend", "demo"]
        process = subprocess.Popen(words, stdin=other, stdout=other, stderr=other, env=environment, close_fds=True)
        os.close(other)
        events = [(0.0, f"$ {command}\r\n")]
        kept = b""
        while time.monotonic() - began < _LONGEST:
            if not select.select([main], [], [], 0.2)[0]:
                if process.poll() is not None:
                    break
                continue
            try:
                data = os.read(main, 65536)
            except OSError:  # the terminal's other end is closed
                break
            text = (kept + data).decode(errors="ignore")
            kept = (kept + data)[len(text.encode()) :]
            events.append((time.monotonic() - began, text))
    if process.wait(10) != 0:
        raise SystemExit(f"the demo ended with {process.returncode}")
    return events


def cast(events: list[tuple[float, str]]) -> str:
    """Return a recording in the format of asciinema, version 2, with long pauses made shorter."""
    lines = [json.dumps({"version": 2, "width": COLUMNS, "height": ROWS, "title": "examsend demo"})]
    at = last = 0.0
    for when, text in events:
        at += min(when - last, _IDLE)
        last = when
        lines.append(json.dumps([round(at, 3), "o", text]))
    return "\n".join(lines) + "\n"


def draw(recording: str) -> str:
    """Given a recording, return it as an animated SVG."""
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.Stream(screen)
    frames: list[tuple[float, str]] = []
    for line in recording.splitlines()[1:]:
        at, _, text = json.loads(line)
        stream.feed(text)
        picture = _picture(screen)
        if frames and at - frames[-1][0] < _FRAME:
            frames[-1] = (frames[-1][0], picture)
        elif not frames or frames[-1][1] != picture:
            frames.append((at, picture))
    length = frames[-1][0] + _END
    wide, high = COLUMNS * _WIDE + 2 * _EDGE, ROWS * _HIGH + 2 * _EDGE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:g} {high:g}" width="{wide:g}" height="{high:g}">',
        "<title>examsend demo</title>",
        f"<style>text{{font:{_SIZE:g}px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:{_TEXT};white-space:pre}}"
        f".f{{visibility:hidden;animation:{length:.2f}s infinite step-end}}"
        + "".join(_rule(n, frames, length) for n in range(len(frames)))
        + "</style>",
        f'<rect width="100%" height="100%" rx="8" fill="{_BACKGROUND}"/>',
    ]
    parts += [f'<g class="f" style="animation-name:k{n}">{picture}</g>' for n, (_, picture) in enumerate(frames)]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _rule(number: int, frames: list[tuple[float, str]], length: float) -> str:
    """Return the CSS by which one picture is visible in its time."""
    begins = 100 * frames[number][0] / length
    ends = 100 * frames[number + 1][0] / length if number + 1 < len(frames) else 100.0
    before = "0%{visibility:hidden}" if begins > 0 else ""
    return f"@keyframes k{number}{{{before}{begins:.3f}%{{visibility:visible}}{ends:.3f}%{{visibility:hidden}}}}"


def _picture(screen: pyte.Screen) -> str:
    """Return the text of a screen, one SVG element for each run of equal colour."""
    parts = []
    for row in range(ROWS):
        line = screen.buffer[row]
        column = 0
        while column < COLUMNS:
            first = line[column]
            run = ""
            begin = column
            while column < COLUMNS and (line[column].fg, line[column].bold) == (first.fg, first.bold):
                run += line[column].data
                column += 1
            if run.strip():
                indent = len(run) - len(run.lstrip())
                x = _EDGE + (begin + indent) * _WIDE
                colour = (
                    "" if first.fg == "default" else f' fill="{_colour(first.fg)}" style="fill:{_colour(first.fg)}"'
                )
                bold = ' font-weight="bold"' if first.bold else ""
                shown = run.strip()
                parts.append(
                    f'<text x="{x:g}" y="{_EDGE + (row + 0.8) * _HIGH:g}" textLength="{len(shown) * _WIDE:g}"{colour}{bold}>'
                    f"{escape(shown).replace(' ', _HARD_SPACE)}</text>"
                )
    return "".join(parts)


def _colour(name: str) -> str:
    plain = name.removeprefix("bright")
    return _COLOURS.get(plain, f"#{name}" if len(name) == 6 and not name.isalpha() else _TEXT)


def main() -> None:
    """Record and draw."""
    file = HERE / "demo.cast"
    if "--draw" not in sys.argv:
        file.write_text(cast(record()))
    (HERE / "demo.svg").write_text(draw(file.read_text()))


if __name__ == "__main__":
    main()
