"""Makes the manual pages in docs/man from the command line's own declarations and README.md: python docs/make_man.py [DIRECTORY]."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import typer
from typer.main import get_command

from examsend import __version__
from examsend.cli import app
from examsend.config.example import toml_value
from examsend.config.settings import PREFIX, Settings

TOP = Path(__file__).parents[1]
COMMON = ("--config", "--database-url", "--json", "--verbose", "--quiet", "--help")
"""The options of every command. The page examsend(1) explains them."""


def pages() -> dict[str, str]:
    """Return each page by its path below docs/man."""
    root = get_command(app)
    commands: dict[str, Any] = {name: root.commands[name] for name in root.list_commands(typer.Context(root))}  # type: ignore[attr-defined]
    found = {f"man1/examsend-{name}.1": _command_page(name, command) for name, command in commands.items()}
    return {"man1/examsend.1": _first_page(commands), **found, "man5/examsend.toml.5": _settings_page()}


def _text(words: str) -> str:
    """Return text as roff takes it: nothing in it is a request or an escape."""
    escaped = (
        " ".join(words.split()).replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    )
    return f"\\&{escaped}" if escaped.startswith(".") else escaped


def _quoted(words: str) -> str:
    return '"' + _text(words).replace('"', "\\(dq") + '"'


def _head(title: str, section: int) -> str:
    return f'.\\" Made by docs/make_man.py.\n.TH {title.upper()} {section} "" "examsend {__version__}" "examsend"\n.nh\n.ad l\n'


def _summary(text: str) -> str:
    return re.split(r"\.(?:\s|$)", " ".join(text.split()), maxsplit=1)[0]


def _command_page(name: str, command: Any) -> str:
    full = f"examsend-{name}"
    parts = [_head(full, 1), f".SH NAME\n{_text(full)} \\- {_text(_summary(command.help))}\n", ".SH SYNOPSIS\n"]
    below: dict[str, Any] = getattr(command, "commands", {})
    each = [(f"examsend {name} {sub}", one) for sub, one in below.items()] or [(f"examsend {name}", command)]
    parts.append(".br\n".join(_synopsis(words, one) for words, one in each))
    parts.append(f".SH DESCRIPTION\n{_text(command.help)}\n")
    if below:
        parts.append(".SH COMMANDS\n")
        for words, one in each:
            parts.append(f".SS {_quoted(words)}\n{_text(one.help)}\n")
            parts += _options(one)
    else:
        parts.append(".SH OPTIONS\n")
        parts += _options(command)
    if name != "demo":
        parts.append(
            f".PP\nThe options {_text(', '.join(COMMON))} are those of every command: see\n.BR examsend (1).\n"
        )
    parts.append(".SH SEE ALSO\n.BR examsend (1),\n.BR examsend.toml (5)\n")
    return "".join(parts)


def _synopsis(words: str, command: Any) -> str:
    context = typer.Context(command)
    arguments = [p.make_metavar(context) for p in command.params if p.param_type_name == "argument"]
    return f".B {_text(words)}\n" + _text(" ".join(["[OPTION]...", *arguments])) + "\n"


def _options(command: Any) -> Iterator[str]:
    context = typer.Context(command)
    for param in command.params:
        shown = param.make_metavar(context)
        if param.param_type_name == "argument":
            yield f".TP\n.I {_text(shown)}\n{_text(param.help or '')}\n"
        elif param.opts[0] not in COMMON and not param.hidden:
            yield _option(param, shown)


def _option(param: Any, metavar: str) -> str:
    names = ", ".join(f"\\fB{_text(name)}\\fR" for name in (*param.opts, *param.secondary_opts))
    value = "" if param.is_flag or param.count else f" \\fI{_text(metavar)}\\fR"
    return f".TP\n{names}{value}\n{_text(param.help or '')}{_default(param)}\n"


def _default(param: Any) -> str:
    if param.is_flag or param.count or not param.show_default or param.default is None or callable(param.default):
        return ""
    return _text(f" [default: {param.default}]").replace("[", " [", 1)


def _first_page(commands: dict[str, Any]) -> str:
    help_text = get_command(app).help or ""
    parts = [_head("examsend", 1), f".SH NAME\nexamsend \\- {_text(_summary(help_text))}\n"]
    parts.append(".SH SYNOPSIS\n.B examsend\n.I COMMAND\n[OPTION]... [ARGUMENT]...\n")
    parts.append(f".SH DESCRIPTION\n{_text(help_text)}\n.SH COMMANDS\n")
    for name, command in commands.items():
        parts.append(f".TP\n.BR {_text(f'examsend-{name}')} (1)\n{_text(_summary(command.help))}.\n")
    parts.append(".SH COMMON OPTIONS\n")
    for param in commands["status"].params:
        if param.param_type_name == "option" and param.opts[0] in COMMON:
            parts.append(_option(param, param.make_metavar(typer.Context(commands["status"]))))
    parts.append(".TP\n\\fB\\-\\-version\\fR\nShow the version and exit.\n")
    parts.append(
        ".TP\n\\fB\\-\\-install\\-completion\\fR, \\fB\\-\\-show\\-completion\\fR\nInstall, or show, the completion of the current shell.\n"
    )
    parts.append(".SH EXIT STATUS\n")
    parts += (f".TP\n.B {code}\n{_text(meaning)}\n" for code, meaning in _exit_codes())
    parts.append(
        ".SH FILES\n.TP\n.I \\(ti/.config/examsend/examsend.toml\n.TQ\n.I /etc/examsend/examsend.toml\n"
        "Settings; the first that exists is used. See\n.BR examsend.toml (5).\n"
        f".SH ENVIRONMENT\n.TP\n.B {PREFIX}CONFIG\nThe file of settings, as by \\-\\-config.\n"
        f".TP\n.B {PREFIX}PG_BIN\nThe directory of postgres and initdb for the embedded server.\n"
        f".TP\n.BI {PREFIX} SETTING\nEach setting, its name in capitals: see\n.BR examsend.toml (5).\n"
    )
    parts.append(".SH SEE ALSO\n.BR examsend.toml (5)\n")
    return "".join(parts)


def _exit_codes() -> list[tuple[str, str]]:
    """Return the rows of README.md's table of exit codes."""
    readme = (TOP / "README.md").read_text()
    section = readme[readme.index("## Exit codes") :].split("\n## ", 1)[0]
    return [
        (code, meaning.replace("`", ""))
        for code, meaning in re.findall(r"^\| (\d+) \| (.*) \|$", section, re.MULTILINE)
    ]


def _settings_page() -> str:
    parts = [
        _head("examsend.toml", 5),
        ".SH NAME\nexamsend.toml \\- settings of examsend\n",
        (
            '.SH DESCRIPTION\nA file in TOML, with a line\n.IR name " = " value\nfor each setting that is not to have its default. '
            f"The environment variable {PREFIX} and the name in capitals overrides it, and an option overrides both.\n"
        ),
        (
            ".B examsend config example\nprints a file with all of them,\n.B examsend config show\nwhat is in effect, and\n"
            ".B examsend config check\nwhether it works.\n.SH SETTINGS\n"
        ),
    ]
    for setting in fields(Settings):
        default = "" if setting.default in {None, ()} or setting.name == "host_name" else toml_value(setting.default)
        shown = f" = {_text(default)}" if default else ""
        parts.append(f".TP\n\\fB{_text(setting.name)}\\fR{shown}\n{_text(setting.metadata['help'])}\n")
    parts.append(".SH SEE ALSO\n.BR examsend (1),\n.BR examsend\\-config (1)\n")
    return "".join(parts)


def main() -> None:
    """Write the pages, and remove those of commands that are no more."""
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else TOP / "docs" / "man"
    made = pages()
    for old in place.glob("man?/*"):
        if str(old.relative_to(place)) not in made:
            old.unlink()
    for name, content in made.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(content)


if __name__ == "__main__":
    main()
