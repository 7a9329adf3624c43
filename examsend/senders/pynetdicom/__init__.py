"""A sender that uses pynetdicom's association. Slower than ``native``; a second implementation to compare with.

pynetdicom by itself blocks for ever where a peer stops reading, starts its DIMSE time-out when a message is queued, does not
limit its queue and sets no socket options. This package therefore replaces the class of the association's socket
(``transport``), queues P-DATA only as fast as it is sent, and has time-outs of its own (``association``).
"""
