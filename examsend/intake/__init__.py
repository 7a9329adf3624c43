"""A file becomes an instance: walk the directory, identify the file, prove it whole, register it."""
