"""The database: tables, engine, migrations and the embedded server. No rules about batches are here."""
