"""Benchmarks: `make bench`, or `python -m benchmarks.NAME --help` for one of them."""
