"""The senders, and certificates for the tests of TLS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from examsend.states import SenderName
from tests import certificates as making
from tests.senders import harness


@pytest.fixture(params=SenderName)
def sender(request: pytest.FixtureRequest) -> Any:
    """Each of the senders; skipped where its program is missing."""
    return harness.sender_here(request.param)


@pytest.fixture(params=harness.ON_THE_WIRE)
def wire_sender(request: pytest.FixtureRequest) -> Any:
    """Each of the senders that read and write the connection themselves."""
    return harness.sender_here(request.param)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of certificates; see ``tests.certificates``."""
    return making.make(tmp_path_factory.mktemp("tls"))
