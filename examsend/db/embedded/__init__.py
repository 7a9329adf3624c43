"""An embedded PostgreSQL server, shared by all processes that use the same directory."""

from __future__ import annotations

from examsend.db.embedded.life import (
    PORT,
    Status,
    default_directory,
    find_binaries,
    running,
    scratch_directory,
    status,
)

__all__ = ["PORT", "Status", "default_directory", "find_binaries", "running", "scratch_directory", "status"]
