"""The wire: presentation contexts, PDUs, the association's data path, TLS. Knows nothing of the database."""
