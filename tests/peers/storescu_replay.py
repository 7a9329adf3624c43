"""A program that behaves like dcm4che's storescu on its command line, and prints what the real one once printed.

UIDs of the recording are replaced by those of the files that it is given; its last line is the exit status. ``marked``: messages
are printed as the logging configuration that it is given asks for.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from examsend.dicom import identity

_HELP = "usage: storescu [options]\n" + "\n".join(
    f"    {option} <value>   explained"
    for option in (
        "--no-evrle",
        "--no-ivrle",
        "--tls-eia-https",
        "--tls-protocol",
        "--max-ops-invoked",
        "--response-timeout",
    )
)
_REQUEST = re.compile(r"  cuid=([0-9.]+)[^\n]*\n  iuid=([0-9.]+)[^\n]*\n  tsuid=([0-9.]+)")
_HEADER = re.compile(r"([.EI]*)\d\d:\d\d:\d\d\.\d{3} \w+ +(.*)")
_CONTINUED = re.compile(r"  \w+=|  |\]$")


def install(directory: Path, recording: Path, *, marked: bool = False) -> Path:
    """Write such a program into a directory, and return its path."""
    program = directory / "storescu"
    root = Path(__file__).parents[2]
    program.write_text(
        "#!/bin/sh\n"
        f"PYTHONPATH='{root}' exec '{sys.executable}' -m tests.peers.storescu_replay '{recording}' {int(marked)} \"$@\"\n"
    )
    program.chmod(0o755)
    return program


def _substituted(text: str, files: Path) -> str:
    """Give each UID of the recording that of a file with the same SOP class and transfer syntax."""
    found = [identity.inspect(path) for path in sorted(files.iterdir())]
    renamed: dict[str, str] = {}
    for sop_class, uid, syntax in _REQUEST.findall(text):
        if uid not in renamed:
            match = next(f for f in found if (f.sop_class_uid, f.transfer_syntax_uid) == (sop_class, syntax))
            renamed[uid] = match.sop_instance_uid
            found.remove(match)
    for old, new in renamed.items():
        text = re.sub(rf"(?<![0-9.]){re.escape(old)}(?![0-9.])", new, text)
    return text


def _marked(lines: list[str]) -> list[str]:
    """Return the lines with each message as one line that begins with the token of the logging configuration."""
    name = re.findall(r"-Dlogback\.configurationFile=(\S+)", os.environ["JAVA_TOOL_OPTIONS"])[-1]
    [token] = re.findall(r"<pattern>(\w+) ", Path(name).read_text())
    made: list[str] = []
    within = False
    for line in lines:
        header = _HEADER.match(line)
        if header is not None:
            made.append(f"{header[1]}{token} {header[2]}")
        elif within and _CONTINUED.match(line):
            made[-1] += "\t" + line
            continue
        else:
            made.append(line)
        within = header is not None
    return made


def main(recording: str, marked: str, *arguments: str) -> int:
    """Print the recording, and return its exit status."""
    if arguments == ("--help",):
        print(_HELP)
        return 0
    print(f"Picked up JAVA_TOOL_OPTIONS: {os.environ['JAVA_TOOL_OPTIONS']}")
    *lines, last = _substituted(Path(recording).read_text(), Path(arguments[-1])).splitlines()
    for line in _marked(lines) if marked == "1" else lines:
        print(line, flush=True)
    return int(last.removeprefix("[exit status ").removesuffix("]"))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
