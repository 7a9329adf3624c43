"""An acceptor in a thread, for peers to talk to: it answers every request and keeps what it saw."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from examsend.dimse.acceptor import Acceptor, Limits
from examsend.dimse.ended import Ended
from examsend.dimse.inbound import Reply, Request
from examsend.dimse.proposed import Granted, Proposed, Rejected
from tests.peers import scripted

VERIFICATION = "1.2.840.10008.1.1"
MPPS = "1.2.840.10008.3.1.2.3.3"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"

SUPPORTED = {VERIFICATION: (EXPLICIT, IMPLICIT), MPPS: (EXPLICIT, IMPLICIT)}

SHORT = Limits(first_seconds=0.8, idle_seconds=1.2, message_seconds=1.0, association_seconds=4.0)
"""So short that a test can wait for each."""


def grant(proposed: Proposed, supported: Mapping[str, tuple[str, ...]]) -> Granted:
    """Given {abstract syntax: transfer syntaxes, the preferred one first}, return the contexts that can be accepted."""
    contexts: dict[int, str] = {}
    for context in proposed.contexts:
        syntax = next((s for s in supported.get(context.abstract_syntax, ()) if s in context.transfer_syntaxes), None)
        if syntax is not None:
            contexts[context.context_id] = syntax
    return Granted(contexts, frozenset(supported))


def judge(proposed: Proposed) -> Granted | Rejected:
    """Grant what is supported."""
    return grant(proposed, SUPPORTED)


@dataclass
class Served:
    """What one association came to."""

    proposed: Proposed | None = None
    requests: list[Request] = field(default_factory=list)
    ended: Ended | None = None
    released: bool = False
    error: BaseException | None = None
    """Anything else that was raised: a defect, or what ``check`` raised."""
    seconds: float = 0.0
    done: threading.Event = field(default_factory=threading.Event)

    def wait(self, seconds: float = 10.0) -> Served:
        """Wait until the association is over."""
        assert self.done.wait(seconds), "the association does not end"
        return self


@dataclass
class Listening:
    """A port on loopback, and the associations that were served on it, in order."""

    port: int
    associations: list[Served] = field(default_factory=list)
    more: threading.Condition = field(default_factory=threading.Condition)

    def served(self, number: int = 0) -> Served:
        """Return an association once it is over."""
        with self.more:
            assert self.more.wait_for(lambda: len(self.associations) > number, 10)
        return self.associations[number].wait()


def serve(
    made: socket.socket,
    served: Served,
    *,
    limits: Limits,
    check: Callable[[], None],
    secure: ssl.SSLContext | None,
    judged: Callable[[Proposed], Granted | Rejected],
    answer: Callable[[Request], Reply],
    pause: float = 0.0,
) -> None:
    """Serve one association to its end."""
    began = time.monotonic()
    acceptor = Acceptor(made, limits, check, secure)
    try:
        served.proposed = acceptor.open(judged)
        while (request := acceptor.request()) is not None:
            served.requests.append(request)
            time.sleep(pause)
            acceptor.reply(request, answer(request))
        served.released = True
    except Ended as ended:
        served.ended = ended
    except BaseException as error:
        served.error = error
    finally:
        served.seconds = time.monotonic() - began
        acceptor.close(abort=True)
        acceptor.close(abort=True)
        served.done.set()


@contextmanager
def accepting(
    limits: Limits = SHORT,
    *,
    check: Callable[[], None] = lambda: None,
    secure: ssl.SSLContext | None = None,
    judged: Callable[[Proposed], Granted | Rejected] = judge,
    answer: Callable[[Request], Reply] = lambda request: Reply(0),
    pause: float = 0.1,
) -> Iterator[Listening]:
    """Accept associations on a free port, each in a thread; at the end none may be left. ``pause``: seconds before each answer.

    An answer that comes at once may reach the wrong thread of a pynetdicom requestor on a busy machine, which then waits in vain.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)
    found = Listening(listener.getsockname()[1])
    stop = threading.Event()
    threads: list[threading.Thread] = []

    def accept() -> None:
        while not stop.is_set():
            try:
                made, _ = listener.accept()
            except TimeoutError:
                continue
            served = Served()
            threads.append(
                threading.Thread(
                    target=serve,
                    args=(made, served),
                    kwargs={
                        "limits": limits,
                        "check": check,
                        "secure": secure,
                        "judged": judged,
                        "answer": answer,
                        "pause": pause,
                    },
                    name=scripted.THREADS,
                    daemon=True,
                )
            )
            threads[-1].start()
            with found.more:
                found.associations.append(served)
                found.more.notify_all()

    server = threading.Thread(target=accept, name=scripted.THREADS, daemon=True)
    server.start()
    try:
        yield found
    finally:
        stop.set()
        server.join(10)
        for thread in threads:
            thread.join(10)
        listener.close()
        assert not any(thread.is_alive() for thread in threads)
        for served in found.associations:
            if served.error is not None and not hasattr(served.error, "expected"):
                raise served.error
