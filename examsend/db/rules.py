"""The bounds of a destination's numbers, as the database checks them.

A number that no interval and no socket can take would end every pass, not only this destination's.
"""

from __future__ import annotations


def _within(low: object, high: object, *columns: str) -> str:
    """BETWEEN also keeps out NaN, which PostgreSQL sorts above every number."""
    return " AND ".join(f"{column} BETWEEN {low} AND {high}" for column in columns)


_WAITS = ("quiet_seconds", "longest_wait_seconds", "grace_seconds", "series_quiet_seconds")

NUMBERS = {
    "limits": f"{_within(1, 1000, 'association_limit')} AND {_within(1, 64, 'associations_per_study')}"
    f" AND {_within(0, 65535, 'async_window')}",
    "max_attempts": _within(1, 10000, "max_attempts"),
    "fallback_after": _within(1, 1000, "fallback_after"),
    "priority": _within(0, 2, "priority"),
    "user_identity_kind": "user_identity_kind IN (1, 2, 5)",
    "waits": _within(0, "1e9", *_WAITS)
    + f" AND backoff_seconds >= 0.01 AND {_within('backoff_seconds', '1e9', 'backoff_max_seconds')}"
    + f" AND {_within(1, '1e9', 'expire_seconds')}",
    "confirm_waits": f"{_within(0, '1e9', 'confirm_after_seconds')} AND {_within(1, '1e9', 'confirm_timeout_seconds')}"
    f" AND confirm_backoff_seconds >= 0.01 AND {_within('confirm_backoff_seconds', '1e9', 'confirm_backoff_max_seconds')}",
    "confirm_instances": _within(1, 10000, "confirm_instances"),
    "late_cutoff": _within(0, "1e6", "late_cutoff_hours"),
    "timeouts": _within(0.1, 86400, "connect_timeout", "accept_timeout", "answer_timeout", "stall_timeout"),
}
"""{name: rule} of CHECK constraints of storage_backend_configs."""
