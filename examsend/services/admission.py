"""Who may have an association, and for what: peer addresses, AE titles, presentation contexts."""

from __future__ import annotations

import ipaddress
import logging
import threading
import time
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from examsend.config.checks import Network
from examsend.dimse.proposed import Granted, Proposed, ProposedContext, Rejected
from examsend.errors import ExamsendError
from examsend.queue.destination import list_destinations
from examsend.services.lasting import LastingDatabase
from examsend.services.ration import Ration
from examsend.services.service import Service

log = logging.getLogger("examsend.listen")

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

# Results, sources and reasons of an A-ASSOCIATE-RJ (PS3.8 Table 9-21).
_PERMANENT, _TRANSIENT = 1, 2
_USER, _PRESENTATION = 1, 3
NOT_THIS_CALLING = Rejected(_PERMANENT, _USER, 3)
NOT_THIS_CALLED = Rejected(_PERMANENT, _USER, 7)
NOT_THIS_CALLED_NOW = Rejected(_TRANSIENT, _USER, 7)
TOO_MANY = Rejected(_TRANSIENT, _PRESENTATION, 2)
"""Local limit exceeded."""

_TITLES_SECONDS = 10.0
"""The destinations' calling AE titles are read again after this time, where one is needed."""


def address_of(host: str) -> Address:
    """Given a peer's address as the system writes it, return it. An IPv4 address in IPv6 form is the IPv4 address."""
    address = ipaddress.ip_address(host.split("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def household(address: Address) -> str:
    """Given an address, return what counts as one peer: the address; of IPv6 the network of 64 bits, which one host can have."""
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


class Titles:
    """The AE titles that the port answers to: its own, and the calling AE titles of the destinations.

    An archive sends what it was asked for to the AE title that asked.
    """

    def __init__(self, own: str, database: LastingDatabase) -> None:
        self._own = own
        self._database = database
        self._lock = threading.Lock()
        self._others: frozenset[str] = frozenset()
        self._read_at: float | None = None
        self._current = False

    def has(self, title: str) -> bool | None:
        """Return whether an AE title is one of them; None: it is not known now, because the database is away."""
        if title == self._own:
            return True
        with self._lock:
            if self._read_at is None or time.monotonic() - self._read_at >= _TITLES_SECONDS:
                self._read()
            if title in self._others:
                return True
            return False if self._current else None

    def _read(self) -> None:
        try:
            self._others = self._database.run(lambda tx: frozenset(d.calling_aet for d in list_destinations(tx)))
            self._current = True
        except ExamsendError:
            self._current = False
        self._read_at = time.monotonic()


class Admission:
    """Decides about connections and associations."""

    def __init__(
        self, services: Sequence[Service], titles: Titles, callers: Iterable[str] = (), peers: Iterable[Network] = ()
    ) -> None:
        """``callers`` and ``peers``: the calling AE titles and the networks that are accepted; empty: all."""
        self._services = {uid: service for service in services for uid in service.abstract_syntaxes}
        self._titles = titles
        self._callers = frozenset(callers)
        self._peers = tuple(peers)
        self._ration = Ration(5)

    def lets_in(self, address: Address) -> bool:
        """Return whether a peer at this address may connect."""
        return not self._peers or any(address in network for network in self._peers)

    def service(self, abstract_syntax: str) -> Service | None:
        """Return the service of an abstract syntax."""
        return self._services.get(abstract_syntax)

    def judge(self, proposed: Proposed) -> Granted | Rejected:
        """Given what an A-ASSOCIATE-RQ says, return what is answered."""
        refusal = self._refusal(proposed)
        if refusal is not None:
            rejected, why = refusal
            if self._ration.allows(why):
                log.warning("association of %s with %s rejected: %s", proposed.calling_aet, proposed.called_aet, why)
            return rejected
        chosen = {c.context_id: self._choose(c) for c in proposed.contexts}
        granted = {number: syntax for number, syntax in chosen.items() if syntax is not None}
        roles = {
            c.abstract_syntax: found
            for c in proposed.contexts
            if c.context_id in granted and (found := self._roles(c)) is not None
        }
        return Granted(granted, frozenset(self._services), roles)

    def _refusal(self, proposed: Proposed) -> tuple[Rejected, str] | None:
        if self._callers and proposed.calling_aet not in self._callers:
            return NOT_THIS_CALLING, f"the calling AE title {proposed.calling_aet} is not in listen_allow_aets"
        known = self._titles.has(proposed.called_aet)
        if known is None:
            why = "is not that of listen, and the destinations' cannot be read"
            return NOT_THIS_CALLED_NOW, f"the called AE title {proposed.called_aet} {why}"
        if not known:
            why = "is neither that of listen nor a destination's calling AE title"
            return NOT_THIS_CALLED, f"the called AE title {proposed.called_aet} {why}"
        return None

    def _roles(self, context: ProposedContext) -> tuple[bool, bool] | None:
        """Return the roles that are granted for a context that is accepted; None: no role selection is answered for it."""
        return None if context.scu_role is None else self._services[context.abstract_syntax].roles(context)

    def _choose(self, context: ProposedContext) -> str | None:
        """Return the transfer syntax for a presentation context; None: it is refused."""
        service = self._services.get(context.abstract_syntax)
        if service is None or not service.takes(context):
            return None
        return next((s for s in service.transfer_syntaxes if s in context.transfer_syntaxes), None)
