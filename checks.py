"""Verify each host of the inventory: `pyinfra -y inventory.py checks.py` shows a table a host, exit 1 on a FAIL."""

from tasks import verification
from tasks.hosts import become_root

become_root()
verification.verify()
