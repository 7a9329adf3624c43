"""Python's garbage collector, which costs more than it frees while modules are imported and when the program ends."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """Import modules in the block: nothing is collected meanwhile, and what is there at its end is never looked at again.

    Modules, classes and functions stay, and are full of cycles: without this, the collector looks at all of them several times
    (measured for what ``send`` imports: 80 of 380 ms, with ``keep`` at the end of the program).
    """
    gc.disable()
    try:
        yield
    finally:
        keep()
        gc.enable()


def keep() -> None:
    """Never look again at what is there now. Before the program ends, this saves a last collection of everything."""
    gc.freeze()
