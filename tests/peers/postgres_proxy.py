"""A proxy before PostgreSQL that can freeze, and that can cut a connection once COMMIT is forwarded."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import make_url


class Proxy:
    """Forwards connections on a TCP port of this host to a server."""

    def __init__(self, url: str) -> None:
        self._server = make_url(url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._flows = threading.Event()
        self._flows.set()
        self._made: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.cut_at_commit = False
        """The next connection that sends COMMIT gets no answer: it is cut after the server has got it."""
        self.url = self._server.set(host="127.0.0.1", port=self._listener.getsockname()[1], query={}).render_as_string(
            hide_password=False
        )

    def freeze(self) -> None:
        """Forward nothing any more, and close nothing."""
        self._flows.clear()

    def go_on(self) -> None:
        """Forward again."""
        self._flows.set()

    def run(self) -> None:
        """Accept connections until the proxy is closed."""
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = self._connect()
                self._made += [client, server]
                for there, back in ((client, server), (server, client)):
                    self._start(self._forward, there, back, there is client)

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _connect(self) -> socket.socket:
        host = self._server.host or str(self._server.query.get("host", "localhost"))
        port = self._server.port or int(str(self._server.query.get("port", 5432)))
        if not host.startswith("/"):
            return socket.create_connection((host, port), 10)
        made = socket.socket(socket.AF_UNIX)
        made.connect(f"{host}/.s.PGSQL.{port}")
        return made

    def _forward(self, source: socket.socket, target: socket.socket, to_server: bool) -> None:
        cut = False
        with suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait(60)
                cut = to_server and self.cut_at_commit and b"COMMIT\0" in data  # not READ COMMITTED
                if cut:
                    self.cut_at_commit = False
                    source.shutdown(socket.SHUT_RDWR)
                target.sendall(data)
                if cut:
                    break
        if not cut:
            for one in (source, target):
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End it, and every connection."""
        self._flows.set()
        for one in (self._listener, *self._made):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for one in (self._listener, *self._made):
            one.close()


@contextmanager
def proxied(url: str) -> Iterator[Proxy]:
    """Run a proxy before the server of a URL."""
    proxy = Proxy(url)
    thread = threading.Thread(target=proxy.run, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.close()
        thread.join(10)
