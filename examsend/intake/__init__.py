"""Ingest of files: list the directory, identify each file, check that it is complete, register it as an instance."""
