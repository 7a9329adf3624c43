"""Benchmarks: run by hand, each prints a table and writes its figures beside itself as JSON."""
