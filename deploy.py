"""Make each host of the inventory a verified, locked-down local LLM: `pyinfra inventory.py deploy.py`."""

from tasks import (
    accounts,
    firewall,
    gateway,
    llama_cpp,
    model,
    monitoring,
    openclaw,
    packages,
    preflight,
    prometheus,
    service,
    swap,
    verification,
)
from tasks.hosts import become_root, load_settings

settings = load_settings()
login = become_root()
target = preflight.inspect(settings, login)

preflight.check(target=target)
packages.install(settings=settings)
accounts.prepare(settings=settings)
swap.make(settings=settings)
llama_cpp.build(target=target)
model.download(target=target)
service.run(target=target)
gateway.run(target=target)
firewall.close(target=target)
monitoring.install(target=target)
prometheus.run(settings=settings)
verification.verify()
openclaw.wire(settings=settings)
verification.prune(target=target)
