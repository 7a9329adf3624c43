"""The commented example of a settings file, made from the settings' declarations."""

from __future__ import annotations

import json
import textwrap
from dataclasses import fields
from pathlib import Path

from examsend.config.settings import FILE_NAME, PREFIX, Settings

_EXAMPLES: dict[str, object] = {
    "spool_directory": "/var/lib/examsend/spool",
    "database_url": "postgresql://examsend:PASSWORD@db.example.org:5432/examsend",
    "database_url_file": "/etc/examsend/database_url",
    "data_directory": "/var/lib/examsend",
    "dcm4che": "/opt/dcm4che/bin",
    "dcmtk": "/usr/bin",
    "on_failed": ("/usr/local/bin/tell-support", "failed"),
    "on_held": ("/usr/local/bin/tell-support", "held"),
    "on_back": ("/usr/local/bin/tell-support", "back"),
    "host_name": "sender-1",
    "listen_allow_aets": "CT1, MR1",
    "listen_allow_peers": "10.1.2.3, 10.2.0.0/16",
    "listen_tls_cert_file": "/etc/examsend/listen.pem",
    "listen_tls_key_file": "$CREDENTIALS_DIRECTORY/listen.key",
    "listen_tls_ca_file": "/etc/examsend/modalities.pem",
}
"""Of the settings that have no default which is the same everywhere."""

_HEAD = f"""\
The settings of examsend: {FILE_NAME} in ~/.config/examsend/ or /etc/examsend/, or the file that --config or {PREFIX}CONFIG names.
Each line without its # changes one setting. The environment overrides it ({PREFIX} and the name in capitals), an option overrides both.
A file that holds a password belongs to its reader alone: chmod 600, or owner root, the group of examsend and chmod 640.
"""


def text() -> str:
    """Return the file: every setting in a comment, with its meaning, its default or an example."""
    parts = ["\n".join(_comment(line) for line in _HEAD.splitlines())]
    for setting in fields(Settings):
        shown = _EXAMPLES.get(setting.name, setting.default)
        about = _comment(setting.metadata["help"])
        parts.append(f"{about}\n#{setting.name} = {toml_value(shown)}")
    return "\n\n".join(parts) + "\n"


def _comment(sentence: str) -> str:
    return "\n".join(textwrap.wrap(sentence, 100, initial_indent="# ", subsequent_indent="# "))


def toml_value(value: object) -> str:
    """Return a value as TOML writes it: JSON's notation of text, lists and numbers is TOML's too."""
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(str(value) if isinstance(value, Path) else value)
