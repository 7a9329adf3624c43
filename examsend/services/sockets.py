"""The listening sockets: handed over by systemd (sd_listen_fds(3)), or made for a port."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import MutableMapping

from examsend.errors import ConfigError, UsageError

FIRST = 3
"""The first handed-over descriptor (SD_LISTEN_FDS_START)."""

_BACKLOG = 128


def handed_over(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """Return the sockets that were handed over to this process; empty if none were.

    The variables that describe them are removed, so that no child takes them for its own. Raises ConfigError for a descriptor
    that is not a listening TCP socket.
    """
    process, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if process != str(os.getpid()):
        return []
    if not (count.isascii() and count.isdecimal() and 1 <= int(count[:6]) <= 1000):
        raise ConfigError(f"the number of sockets handed over is not valid: LISTEN_FDS={count[:20]!r}")
    return [_taken(descriptor) for descriptor in range(FIRST, FIRST + int(count))]


def _taken(descriptor: int) -> socket.socket:
    try:
        taken = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ConfigError(
            f"descriptor {descriptor}, handed over for listening, is not a socket: {error.strerror}"
        ) from None
    try:
        is_right = (
            taken.family in {socket.AF_INET, socket.AF_INET6}
            and taken.type == socket.SOCK_STREAM
            and taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        )
    except OSError:
        is_right = False
    if not is_right:
        taken.detach()
        raise ConfigError(f"descriptor {descriptor}, handed over for listening, is not a listening TCP socket")
    os.set_inheritable(descriptor, False)
    taken.setblocking(False)
    return taken


def listening_on(port: int, bind: str | None) -> socket.socket:
    """Given a port (0: a free one) and an address (None: all addresses, of IPv4 and IPv6), return a socket that listens there.

    Raises UsageError for what is not an IP address, ConfigError where the system does not allow it.
    """
    if bind is not None:
        try:
            ipaddress.ip_address(bind.split("%")[0])
        except ValueError:
            raise UsageError(f"--bind must be an IP address, not {bind!r}") from None
    both = bind is None and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or ":" in (bind or "") else socket.AF_INET
    try:
        made = socket.create_server((bind or "", port), family=family, backlog=_BACKLOG, dualstack_ipv6=both)
    except (OSError, OverflowError) as error:
        where = f"port {port}" if bind is None else f"{bind}, port {port}"
        raise ConfigError(f"cannot listen on {where}: {getattr(error, 'strerror', None) or error}") from None
    made.setblocking(False)
    return made
