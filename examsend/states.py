"""Names the schema shares with the code that moves batches: states, outcomes, policies."""

from __future__ import annotations

BATCH_STATES = ("PENDING", "READY", "SENDING", "SENT", "FAILED")

INSTANCE_OUTCOMES = (
    "WAITING",  # not offered yet
    "RETRY",  # offered; refused for now or never answered
    "STORED",  # answered with success or a warning
    "FAILED",  # refused for good
    "CONFLICT",  # the archive has other octets under this SOP Instance UID: for a person
    "CHANGED",  # the file is not what was ingested
    "MISSING",  # the file is gone
    "SUPERSEDED",  # another version took its place before it was ever offered; kept, not sent
    "NOT_SENT",  # recorded under the late policy `never`
)

UNSENT = ("WAITING", "RETRY")
"""What the next attempt still has to offer."""

SENDERS = ("native", "pynetdicom", "dcm4che", "dcmtk")
LATE_POLICIES = ("new-only", "resend-all", "never")
ON_INCOMPLETE = ("send", "hold")

TERMINATED = ("STORED", "SUPERSEDED")
"""What a SENT batch may consist of."""
