"""Fixtures for the embedded server: directories and client processes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from examsend.db import embedded
from tests.db.embedded.helpers import Client


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for a server, which does not exist yet. Its path holds a space."""
    with tempfile.TemporaryDirectory(prefix="examsend test ") as made, ExitStack() as stack:
        os.chmod(made, 0o711)  # for the user of root's server
        with monkeypatch.context() as patch:
            patch.setattr(tempfile, "tempdir", made)
            directory = stack.enter_context(embedded.scratch_directory())
        assert made in str(directory)
        yield directory


@pytest.fixture
def client(place: Path) -> Iterator[Callable[..., Client]]:
    """Starts client processes; they are killed at the end of the test."""
    with ExitStack() as stack:

        def start(at: Path = place, **how: Any) -> Client:
            made = Client(at, **how)
            stack.callback(made.close)
            return made

        yield start


@pytest.fixture
def home() -> Iterator[Path]:
    """A private directory of an ordinary user."""
    made = Path(tempfile.mkdtemp(prefix="examsend-home-"))
    os.chown(made, 65534, 65534)
    yield made
    shutil.rmtree(made)
