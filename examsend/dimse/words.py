"""Sentences for A-ASSOCIATE-RJ and A-ABORT, in the terms of the standard (PS3.8 Tables 9-21 and 9-26)."""

from __future__ import annotations

_RESULTS = {1: "permanent", 2: "transient"}

_SOURCES = {
    1: "by the service user",
    2: "by the service provider, ACSE",
    3: "by the service provider, presentation",
}

_REASONS = {
    (1, 1): "no reason given",
    (1, 2): "application context name not supported",
    (1, 3): "calling AE title not recognised",
    (1, 7): "called AE title not recognised",
    (2, 1): "no reason given",
    (2, 2): "protocol version not supported",
    (3, 1): "temporary congestion",
    (3, 2): "local limit exceeded",
}

_ABORT_REASONS = {
    0: "no reason given",
    1: "unrecognised PDU",
    2: "unexpected PDU",
    4: "unrecognised PDU parameter",
    5: "unexpected PDU parameter",
    6: "invalid PDU parameter value",
}


def rejection(result: int, source: int, reason: int) -> str:
    """Given result, source and reason of an A-ASSOCIATE-RJ, return a sentence."""
    what = _REASONS.get((source, reason), f"reason {reason}")
    how = f"{_RESULTS.get(result, f'result {result}')}, {_SOURCES.get(source, f'source {source}')}"
    return f"association rejected: {what} ({how})"


def abort(source: int, reason: int) -> str:
    """Given source and reason of an A-ABORT, return a sentence."""
    if source == 0:
        return "the peer aborted the association"
    return f"the peer's service provider aborted the association: {_ABORT_REASONS.get(reason, f'reason {reason}')}"
