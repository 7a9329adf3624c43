"""Connect to a peer: look up its name, open a TCP connection, do the TLS handshake, all within one time-out.

The TLS handshake and the options of a connection are the same where a peer connects to us.

Every wait is short, so that a pass that is asked to stop does not wait for a peer.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

from examsend.config.destination import host_port
from examsend.dimse import tls
from examsend.dimse.ended import Ended
from examsend.errors import ConfigError
from examsend.transfer import End, Peer

CHECK_SECONDS = 0.25
"""Longest wait, and the longest time in which nothing is checked."""

_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", None)

_NOT_SENT = 1 << 16
"""Bytes that the system keeps and has not sent yet, about. With megabytes of them, it sends while it handles what the receiver
acknowledges: on the receiver's core, where both are on one machine. What is sent and not acknowledged is not limited."""


def connect(peer: Peer, check: Callable[[], None]) -> socket.socket:
    """Given a peer, return a non-blocking socket that is connected to it; an ``ssl.SSLSocket`` where it has TLS settings.

    Tries each address of its name; ``connect_timeout`` covers look-up, connections and handshake. ``check`` is called several
    times a second and may raise. Raises Ended (UNREACHABLE, TLS_FAILED, MISCONFIGURED).
    """
    deadline = time.monotonic() + peer.connect_timeout
    where = host_port(peer.host, peer.port)
    try:
        context = None if peer.tls is None else tls.context(peer.tls)
    except ConfigError as error:
        raise Ended(End.MISCONFIGURED, str(error)) from None
    addresses = _look_up(peer, deadline, check)
    failure: OSError | None = None
    for n, address in enumerate(addresses):
        now = time.monotonic()
        if now >= deadline:
            break
        try:
            # An address that does not answer leaves time for those after it.
            connection = _connect(address, now + (deadline - now) / (len(addresses) - n), check)
        except OSError as error:
            failure = error
            continue
        if context is None:
            return connection
        return _handshake(connection, context, peer, deadline, check)
    if failure is None or isinstance(failure, TimeoutError):
        raise Ended(End.UNREACHABLE, f"cannot connect to {where}: no answer within {peer.connect_timeout:g} s")
    raise Ended(End.UNREACHABLE, f"cannot connect to {where}: {failure.strerror or failure}")


def _look_up(peer: Peer, deadline: float, check: Callable[[], None]) -> list[Any]:
    """Return the addresses of a peer. A name is looked up in a thread, because the look-up itself has no time-out."""
    where = host_port(peer.host, peer.port)
    try:
        return socket.getaddrinfo(peer.host, peer.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except OSError:
        pass
    except UnicodeError as error:
        raise Ended(End.MISCONFIGURED, f"the host name of {where} is not valid: {error}") from None
    found: list[Any] = []
    done = threading.Event()

    def ask() -> None:
        try:
            found.append(socket.getaddrinfo(peer.host, peer.port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            found.append(error)
        done.set()

    threading.Thread(target=ask, name="look-up", daemon=True).start()
    while not done.wait(min(CHECK_SECONDS, max(deadline - time.monotonic(), 0.0))):
        check()
        if time.monotonic() >= deadline:
            raise Ended(
                End.UNREACHABLE,
                f"cannot connect to {where}: its name was not looked up within {peer.connect_timeout:g} s",
            )
    answer = found[0]
    if isinstance(answer, UnicodeError):
        raise Ended(End.MISCONFIGURED, f"the host name of {where} is not valid: {answer}")
    if isinstance(answer, OSError):
        raise Ended(End.UNREACHABLE, f"cannot connect to {where}: {answer.strerror or answer}")
    return list(answer)


def _connect(address: Any, deadline: float, check: Callable[[], None]) -> socket.socket:
    """Return a connected socket. Raises OSError, TimeoutError after ``deadline``, or what ``check`` raised."""
    family, kind, protocol, _, at = address
    connection = socket.socket(family, kind, protocol)
    try:
        connection.setblocking(False)
        try:
            connection.connect(at)
        except BlockingIOError:
            _await(connection, select.POLLOUT, deadline, check)
        code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        set_options(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def set_options(connection: socket.socket) -> None:
    """Set the TCP options of an association. Raises OSError.

    TCP_USER_TIMEOUT is not one of them: the system ends a connection by it whose peer reads slowly and is never ready for a whole
    segment, although it acknowledges something all the time. The wire looks at what is acknowledged itself.
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if _NOTSENT_LOWAT is not None:
        connection.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, _NOT_SENT)


def _handshake(
    connection: socket.socket, context: ssl.SSLContext, peer: Peer, deadline: float, check: Callable[[], None]
) -> ssl.SSLSocket:
    """Do the TLS handshake, and check the pinned certificate before anything is sent over the connection."""
    settings = peer.tls
    assert settings is not None
    secure = handshake(
        connection,
        lambda made: context.wrap_socket(
            made, server_hostname=settings.server_name or peer.host, do_handshake_on_connect=False
        ),
        peer.connect_timeout,
        deadline,
        check,
    )
    try:
        tls.check_pin(settings, secure.getpeercert(binary_form=True))
    except ssl.SSLError as error:
        secure.close()
        raise Ended(End.TLS_FAILED, tls.words(error)) from None
    return secure


def handshake(
    connection: socket.socket,
    wrap: Callable[[socket.socket], ssl.SSLSocket],
    seconds: float,
    deadline: float,
    check: Callable[[], None],
) -> ssl.SSLSocket:
    """Do the TLS handshake over a non-blocking connection, as either side; return the connection that ``wrap`` makes of it.

    ``deadline`` is a time of the monotonic clock; ``seconds`` is what the sentence says of it. Raises Ended (TLS_FAILED,
    MISCONFIGURED), or what ``check`` raised; the connection is closed then.
    """
    secure: ssl.SSLSocket | None = None
    try:
        # ``wrap_socket`` leaves its new socket open where the peer has reset the connection. This finds that before.
        connection.getpeername()
        secure = wrap(connection)
        while True:
            check()
            try:
                secure.do_handshake()
            except ssl.SSLWantReadError:
                _await(secure, select.POLLIN, deadline, check)
            except ssl.SSLWantWriteError:
                _await(secure, select.POLLOUT, deadline, check)
            else:
                return secure
    except BaseException as error:
        # ``wrap_socket`` moves the descriptor to the new socket.
        (secure or connection).close()
        if isinstance(error, TimeoutError):
            raise Ended(End.TLS_FAILED, f"TLS: the handshake took longer than {seconds:g} s") from None
        if isinstance(error, ssl.SSLError):
            raise Ended(End.TLS_FAILED, tls.words(error)) from None
        if isinstance(error, OSError):
            raise Ended(End.TLS_FAILED, f"TLS: the handshake failed: {error.strerror or error}") from None
        if isinstance(error, ValueError):
            # A name that cannot be a server's: ".x", or a label of more than 63 characters (UnicodeError).
            raise Ended(End.MISCONFIGURED, f"TLS: the name of the peer cannot be used: {error}") from None
        raise


def _await(connection: socket.socket, event: int, deadline: float, check: Callable[[], None]) -> None:
    """Wait until a socket is ready for ``event``. Raises TimeoutError after ``deadline``, or what ``check`` raised."""
    poll = select.poll()
    poll.register(connection, event)
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if poll.poll(min(left, CHECK_SECONDS) * 1000):
            return
        check()
