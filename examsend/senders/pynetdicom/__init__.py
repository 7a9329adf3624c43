"""A sender that uses pynetdicom's association. Slower than ``native``; a second implementation to compare with.

pynetdicom by itself blocks for ever where a peer stops reading, starts its DIMSE time-out when a message is queued, does not
limit its queue and sets no socket options. This package therefore replaces the class of the association's socket
(``transport``), queues P-DATA only as fast as it is sent, and has time-outs of its own (``association``).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from examsend.dimse.ended import Ended
from examsend.senders.base import Capabilities
from examsend.senders.pynetdicom.association import Association
from examsend.states import SenderName
from examsend.transfer import AssociationEnd, Item, Peer, Watcher


class PynetdicomSender:
    """See ``base.Sender``."""

    name = SenderName.PYNETDICOM.value
    capabilities = Capabilities(
        user_identity=True, converts_byte_order=True, notes=("one C-STORE outstanding at a time; slower than native",)
    )

    def send(self, peer: Peer, items: Sequence[Item], watcher: Watcher) -> AssociationEnd:
        """See ``base.Sender.send``."""
        began = time.monotonic()
        association = Association(peer, watcher)
        try:
            end = association.run(items)
        except Ended as ended:
            end = association.end(ended)
        finally:
            association.close()
        return replace(end, seconds=time.monotonic() - began)
