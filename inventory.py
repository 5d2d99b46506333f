"""Your hosts. Add each one to `hosts`: its address, and how to log in where `ssh HOST` does not suffice.

    hosts = [
        "llm.example.net",
        ("203.0.113.7", {"ssh_user": "ubuntu", "ssh_port": 2222, "context_tokens": 8192}),
    ]

A host's dictionary may hold any setting of docs/SETTINGS.md; group_data/all.py holds those of every host. A cloud's key
belongs into neither.
On the VPS itself no inventory is needed: `.venv/bin/pyinfra @local deploy.py`.
"""

import sys

hosts: list[str | tuple[str, dict[str, object]]] = []

# The same, with the settings of group_data/optimised.py as well: a larger model, swap and Prometheus.
optimised: list[str | tuple[str, dict[str, object]]] = []

if not hosts and not optimised:
    sys.exit(
        f"No host is configured: add yours to `hosts` in {__file__}, "
        "or run `.venv/bin/pyinfra @local deploy.py` on the VPS."
    )
