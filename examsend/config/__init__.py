"""Settings, each declared once: those of a pass (``settings``), those of a destination (``destination``), their ``checks``."""
