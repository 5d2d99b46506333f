"""Programs that run on the measured machine with its own python3 and nothing else; each prints JSON."""
