"""Take away all that a deploy made, and put back what it changed: `pyinfra inventory.py uninstall.py`.

Models, logs and history stay, unless `--data uninstall_models=True` (`uninstall_logs`, `uninstall_history`) is given.
"""

from tasks import accounts, firewall, packages, prometheus, swap, uninstall
from tasks.hosts import become_root, load_settings

settings = load_settings(secrets=False)
login = become_root()
leaving = uninstall.inspect(settings, login)

uninstall.check(leaving=leaving)
uninstall.stop()
prometheus.remove(settings=settings)
firewall.restore(login=login, machine=leaving.machine)
swap.remove()
uninstall.delete(leaving=leaving)
accounts.remove(settings=settings)
packages.remove(settings=settings)
uninstall.forget(leaving=leaving)
