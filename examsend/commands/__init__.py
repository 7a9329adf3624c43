"""One module a command: ``run(settings, ...)`` returns a result, prints nothing. ``examsend X``: ``cli/X.py``, ``commands/X.py``."""
