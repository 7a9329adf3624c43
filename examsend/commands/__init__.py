"""The commands, one module each. ``run(settings, ...)`` returns a result and prints nothing.

The options of ``examsend X`` are in ``cli/X.py``, the command is in ``commands/X.py``.
"""
