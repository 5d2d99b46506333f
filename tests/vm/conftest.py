"""One virtual machine for all tests, deployed to once, and copies of its disk as power cuts would have left it.

The copies are made while the first deploy, and one that adds a swap file, write what they must not lose. Each is booted
later as a machine of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from checks.contract import paths
from facts.machine import Machine as MachineFact
from operations.llama_cpp import Release
from sandbox.host import SandboxHost
from sandbox.vm import VirtualMachine, accelerator
from sandbox.vm_disks import Disk, disk
from sandbox.vm_objects import compiled_objects
from tests.container.conftest import engine, models, no_faults, source, with_settings
from tests.container.machine import DEPLOY_SECONDS, Machine, Run, Source, finished

__all__ = ["engine", "models", "no_faults", "source"]

CGROUP = "/sys/fs/cgroup/localllm.slice/local-llm.service"
OVER = "/run/cuts-are-over"
COMMITTED_SECONDS = 6
"""ext4 writes a new name to the disk within 5 s, and what the file holds up to 30 s later: between the two a power cut
leaves a file of that name without content (jbd2's commit interval, vm.dirty_expire_centisecs)."""
SWAP_MIB = 256
RECEIVER_PORT = 8900
RECEIVER = rf"""
cat >/usr/local/bin/receiver <<'END'
#!/usr/bin/python3
from http.server import BaseHTTPRequestHandler, HTTPServer
class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
HTTPServer(("127.0.0.1", {RECEIVER_PORT}), Receiver).serve_forever()
END
chmod 0755 /usr/local/bin/receiver
printf '[Service]\nExecStart=/usr/local/bin/receiver\n[Install]\nWantedBy=multi-user.target\n' \
    >/etc/systemd/system/receiver.service
"""
"""Takes what alerts post."""


@dataclass(frozen=True)
class Cut:
    """A moment for a power cut: so many seconds after a condition, a cheap shell command in the machine."""

    name: str
    condition: str
    seconds: float = COMMITTED_SECONDS


FIRST_DEPLOY_CUTS = (
    # The build begins where the fetch has ended.
    Cut("fetch", "[ -e /run/systemd/transient/local-llm-build.service ]"),
    Cut("install", f"[ -e {paths.CURRENT}/bin/llama-server ]"),
    Cut("model", f"[ -e {paths.MODELS}/*.gguf ]"),
    Cut("units", f"[ -e /etc/systemd/system/{paths.SERVICE_UNIT} ]"),
)
SWAP_CUTS = (
    Cut("half a swap file", "[ -s /var/swap/local-llm.new ]", 0),
    Cut("swap file", f"grep -q {paths.SWAP_FILE} /proc/swaps", 0),
)


@dataclass(frozen=True)
class Watched:
    """The machine after a deploy, and the disks of the cuts that were made during it."""

    machine: Machine
    disks: dict[str, Path]


def virtual(machine: Machine) -> VirtualMachine:
    """Its host as what it is here: with power and a disk, and what `Machine` uses of a container."""
    assert isinstance(machine.host, VirtualMachine)
    return machine.host


@pytest.fixture(scope="session")
def system() -> Disk:
    """Ubuntu's cloud image where KVM boots it, else a Debian without a boot loader, which an emulated CPU can bear."""
    name = os.environ.get("LOCAL_LLM_VM_DISK") or ("ubuntu24.04" if accelerator() == "kvm" else "debian13")
    return disk(name)


@pytest.fixture(scope="session")
def bare(system: Disk, source: Source) -> Iterator[Machine]:
    """A machine as a provider hands it over."""
    settings: dict[str, object] = {"alert_webhook_url": f"http://127.0.0.1:{RECEIVER_PORT}/"}
    with VirtualMachine(system) as vm:
        vm.exec("sh", "-c", f"{RECEIVER}systemctl -q enable --now receiver")
        if accelerator() != "kvm":
            # An emulated CPU compiles for hours: it gets the objects, for any CPU that has AVX2.
            settings["build_native"] = False
            vm.unpack(objects_for(vm, source), paths.SCRATCH)
        yield Machine(cast(SandboxHost, vm), source, settings)


def objects_for(vm: VirtualMachine, source: Source) -> Path:
    """What the deploy's build would leave in its compiler's cache on this machine."""
    hardware = MachineFact().process(vm.exec("sh", "-c", MachineFact().command()).splitlines())
    cpu = f"{hardware.architecture} {' '.join(sorted(hardware.cpu_flags))}"
    assert source.hub.repository is not None
    return compiled_objects(Release("", source.commit, False, cpu), source.hub.repository, vm.image)


@pytest.fixture(scope="session")
def first(bare: Machine, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """After the first deploy, during which the disk was copied at each of the cuts."""
    bare.first_deploy, disks = deploy_with_cuts(bare, FIRST_DEPLOY_CUTS, tmp_path_factory.mktemp("disks"))
    return Watched(bare, disks)


@pytest.fixture(scope="session")
def deployed(first: Watched) -> Machine:
    """As a container's: what is deployed to by default."""
    return first.machine


@pytest.fixture(scope="session")
def swapping(deployed: Machine, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """The same machine with a swap file, and the disks of the cuts while it was made."""
    machine = with_settings(deployed, swap_file_mib=SWAP_MIB)
    _, disks = deploy_with_cuts(machine, SWAP_CUTS, tmp_path_factory.mktemp("disks"))
    return Watched(machine, disks)


def deploy_with_cuts(machine: Machine, cuts: tuple[Cut, ...], folder: Path) -> tuple[Run, dict[str, Path]]:
    """Deploy, and meanwhile copy the disk at each cut."""
    vm = virtual(machine)
    vm.exec("rm", "-f", OVER)
    began = time.monotonic()
    with ThreadPoolExecutor(len(cuts)) as pool:
        copies = {cut.name: pool.submit(partial(copy_at, vm, cut, folder)) for cut in cuts}
        process = machine.start()
        try:
            out, err = process.communicate(timeout=DEPLOY_SECONDS)
        finally:
            process.kill()
            vm.exec("touch", OVER)
    run = finished(process, out, err, time.monotonic() - began)
    disks = {name: file for name, copy in copies.items() if (file := copy.result()) is not None}
    assert run.succeeded, run.output
    assert disks.keys() == copies.keys(), run.output
    return run, disks


def copy_at(vm: VirtualMachine, cut: Cut, folder: Path) -> Path | None:
    """The disk's copy; None where the deploy was over before."""
    # Waiting happens in the machine: asking it over and over would come too late.
    wait = f"until {cut.condition}; do [ ! -e {OVER} ] || exit 0; sleep 0.05; done; sleep {cut.seconds}; echo now"
    if "now" not in vm.exec("sh", "-c", wait, timeout_seconds=DEPLOY_SECONDS):
        return None
    return vm.snapshot(folder / f"{cut.name}.img")
