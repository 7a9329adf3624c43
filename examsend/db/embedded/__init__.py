"""An embedded PostgreSQL server, shared by all processes that use the same directory.

The first client that needs the server starts it, and the last client that leaves stops it. The PostgreSQL binaries come
from a wheel (extra ``embedded``) or from the system. Three lock files in the directory coordinate the clients:

==============  =========================================================================================
clients.lock    Each client holds a shared lock. A client that leaves and then gets an exclusive lock was the
                last one, and stops the server.
start.lock      Exclusive: only one process at a time initialises, starts or stops the server.
server.lock     Exclusive, inherited by the server's processes: it is held while any of them runs, in any
                container, so that no second server starts on the same data.
==============  =========================================================================================

They are ``flock`` locks, which the kernel releases when their holder dies. So the next client can clean up after a
killed one.

The server listens on a Unix socket only. The socket is in a directory that only its owner can enter, and every
connection to it is trusted. PostgreSQL refuses to run as root: if this process runs as root, the server runs as another
user. What is written inside the data directory is written as that user, so that symbolic links in it cannot make root
overwrite other files.

Modules, each importing only from those below it::

    clients     running a server for the length of a block; throw-away servers
    life        initialising, starting and stopping the server
    postmaster  observing a server: does it accept sessions, what is its process id
    binaries    finding the PostgreSQL binaries and making them executable for the server's user
    locks       the lock files
    place       the directories of data and socket
    user        the server's user, and running commands as that user
    failures    which exception and which sentence a failure becomes
"""

from __future__ import annotations

from examsend.db.embedded.binaries import find_binaries
from examsend.db.embedded.clients import exists, running, scratch_directory
from examsend.db.embedded.place import PORT, default_directory
from examsend.db.embedded.postmaster import Status, status

__all__ = ["PORT", "Status", "default_directory", "exists", "find_binaries", "running", "scratch_directory", "status"]
