"""Fixtures for the tests of what listens."""

from __future__ import annotations

from tests.senders.conftest import certificates

__all__ = ["certificates"]
