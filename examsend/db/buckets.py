"""The histograms of durations, and how the rows of totals are spread. Plain constants, for statements and for metrics."""

from __future__ import annotations

BUCKETS = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 21600.0, 86400.0, float("inf"))
"""Upper bounds in seconds."""

SHARDS = 16
"""A batch counts in the rows of shard ``batch_id % SHARDS``, so that parallel senders seldom wait for each other's row."""
