"""Settings of a pass (``settings``) and of a destination (``destination``), each declared once with its check (``checks``)."""
