"""The database's URL, and what libpq says where it cannot connect. No message holds a piece of a password."""

from __future__ import annotations

import re

from sqlalchemy import URL, exc, make_url

from examsend.errors import ConfigError

_SHAPE = "it must look like postgresql://user:password@host:5432/database"
_USER = re.compile(r"[^:]*://(?:[^:/]*(?::[^@]*)?@)?", re.DOTALL)
"""What is before the host, as SQLAlchemy reads it: a password ends at the first @."""

# What PostgreSQL, pgbouncer and libpq say of a connection that waiting will not make. There is no SQLSTATE before a connection is
# made: psycopg2 has the text only. A server that speaks another language is waited for, as one that is starting.
_REFUSALS = (
    (r"(no|empty) password (supplied|returned)", "asks for a password, and the URL has none"),
    (r"password authentication failed|wrong password type", "refuses the password"),
    (r"\w+ authentication failed for user|no such user", "refuses this user"),
    (r"role \".*\" (does not exist|is not permitted to log in)", "refuses this user"),
    (r"pg_hba\.conf", "refuses this user"),
    (r"database \".*\" does not exist|no such database", "has no such database"),
    (r"permission denied for database", "denies this user what the command needs"),
    (r"server does not support SSL", "does not use TLS, which the URL asks for"),
    (r"invalid (dsn|sslmode|port|integer|connection option|\S+ value)", "cannot be connected to with this URL"),
    (r"(certificate|private key) file", "cannot be connected to with this URL"),
)


def refusal(message: str) -> str | None:
    """Given the text of a failed connection, return a sentence if waiting does not help, else None."""
    for line in message.splitlines():
        for pattern, meaning in _REFUSALS:
            if re.search(pattern, line):
                return f"the database {meaning}: {line.strip()}"
    return None


def parse(url_text: str) -> URL:
    """Given the text of a URL, return the URL. Raises ConfigError unless it is one of PostgreSQL.

    A character of a password that is not encoded ends the password early, and its rest would be a host, a port or a database
    that messages name. Such a URL is refused.
    """
    try:
        url_text.encode()
        url = make_url(url_text)
    except exc.ArgumentError:
        raise ConfigError(f"the database URL is not valid: {_SHAPE}") from None
    except UnicodeEncodeError:
        raise ConfigError("the database URL is not valid: it has characters that are not UTF-8") from None
    except ValueError:
        raise ConfigError(f"the database URL is not valid: its port is not a number; {_SHAPE}") from None
    if url.drivername not in {"postgresql", "postgres", "postgresql+psycopg2"}:
        raise ConfigError(
            f"the database URL does not begin with postgresql://, and examsend works with PostgreSQL: {_SHAPE}"
        )
    before_host = _USER.match(url_text)
    if "@" in url_text[before_host.end() if before_host else 0 :]:
        raise ConfigError("the database URL has an @ too many: write an @ in a password as %40")
    if url.port is not None and not 1 <= url.port <= 65535:
        raise ConfigError(f"the database URL is not valid: its port is not one of 1 to 65535; {_SHAPE}")
    if "\x00" in "".join((url.username or "", str(url.password or ""), url.host or "", url.database or "")):
        raise ConfigError("the database URL is not valid: it holds a NUL character")
    return url.set(drivername="postgresql+psycopg2")


def masked(url_text: str) -> str:
    """Given the text of a URL, return it without its passwords, for people. Never raises."""
    try:
        url = parse(url_text)
    except ConfigError:
        return "(not a valid URL, and not shown: it may hold a password)"
    hidden = {k: "***" if re.search("passw|secret|token", k, re.IGNORECASE) else v for k, v in url.query.items()}
    shown = url.set(drivername="postgresql", query=hidden)
    return shown.render_as_string(hide_password=True).replace("%2A%2A%2A", "***")
