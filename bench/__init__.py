"""Benchmarks, run by hand. Each prints a table and writes its figures to ``bench/NAME.json``."""
