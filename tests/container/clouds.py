"""A machine whose cloud is the sandbox's scripted one, which it resolves and trusts by the host's own means."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from sandbox.servers.answers import CLOUD_KEY, CLOUD_MODELS
from sandbox.servers.cloud import CLOUD_NAME, Cloud
from tests.container.machine import Machine

AUTHORITY = "/usr/local/share/ca-certificates/local-llm-test.crt"
RESOLVER_UNIT = "test-resolver"


def with_cloud(machine: Machine, cloud: Cloud, **settings: object) -> Machine:
    """The machine with settings that name the scripted cloud; limits are short, so that tests are."""
    of_cloud: dict[str, object] = {
        "cloud_url": cloud.url,
        "cloud_models": list(CLOUD_MODELS),
        "cloud_check_seconds": 1,
        "cloud_first_byte_seconds": 2,
        "cloud_silence_seconds": 5,
        "request_timeout_seconds": 60,
    }
    environment = {**machine.environment, "LOCAL_LLM_CLOUD_KEY": CLOUD_KEY}
    return replace(machine, settings={**machine.settings, **of_cloud, **settings}, environment=environment)


@contextmanager
def reachable(machine: Machine, cloud: Cloud) -> Iterator[None]:
    """The cloud's name resolves and its authority is trusted; afterwards the machine is deployed as it was before."""
    try:
        trust(machine, cloud)
        start_resolver(machine, cloud)
        yield
    finally:
        forget(machine)
        assert machine.deploy().succeeded


@contextmanager
def deployed_with(machine: Machine, cloud: Cloud, **settings: object) -> Iterator[Machine]:
    """The machine, deployed with the cloud; afterwards deployed without it."""
    clouded = with_cloud(machine, cloud, **settings)
    with reachable(machine, cloud):
        run = clouded.deploy()
        assert run.succeeded, run.output
        yield clouded


def trust(machine: Machine, cloud: Cloud) -> None:
    """Put the cloud's authority among the system's."""
    machine.sh(f"cat > {AUTHORITY} <<'END'\n{cloud.ca_pem}\nEND\nupdate-ca-certificates >/dev/null 2>&1")


def start_resolver(machine: Machine, cloud: Cloud) -> None:
    """A name server on the machine that knows the cloud and asks the former ones for the rest."""
    machine.sh(
        "command -v dnsmasq || { apt-get update -q && apt-get install -q -y dnsmasq-base; } >/dev/null 2>&1\n"
        "test -e /root/resolv.conf || cp /etc/resolv.conf /root/resolv.conf\n"
        f"systemctl stop {RESOLVER_UNIT} 2>/dev/null; systemctl reset-failed {RESOLVER_UNIT} 2>/dev/null\n"
        f"systemd-run --quiet --collect --unit={RESOLVER_UNIT} dnsmasq --keep-in-foreground --user=root "
        "--listen-address=127.0.0.1 --bind-interfaces --resolv-file=/root/resolv.conf "
        f"--local-ttl=1 --host-record={CLOUD_NAME},$(getent ahostsv4 {cloud.host} | head -1 | cut -d' ' -f1)\n"
        "echo 'nameserver 127.0.0.1' > /etc/resolv.conf"
    )


def stop_resolver(machine: Machine) -> None:
    """No name is known any more."""
    machine.sh(f"systemctl stop {RESOLVER_UNIT}")


def forget(machine: Machine) -> None:
    """Leave the machine as it was."""
    machine.sh(
        f"systemctl stop {RESOLVER_UNIT} 2>/dev/null; rm -f {AUTHORITY} /var/lib/local-llm/drill.json\n"
        "update-ca-certificates --fresh >/dev/null 2>&1\n"
        "test ! -e /root/resolv.conf || cat /root/resolv.conf > /etc/resolv.conf; rm -f /root/resolv.conf"
    )
