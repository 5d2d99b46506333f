"""Measurements with a peer in the same run, each a script of its own: `python -m benchmarks.NAME --help`."""
