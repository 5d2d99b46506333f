"""A running sandbox machine: systemd as PID 1, sshd on a fixed port of 127.0.0.1, a sudo user with a key,
like a VPS.

The container outlives this process unless stop() is called; its labels let `down` find it again.
"""

import contextlib
import os
import random
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from docker.types import Mount
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.docker_client import DockerClient

from sandbox.common import LABEL, SandboxError, Switched, cache_dir, can_bind, failed_in, last_lines, only_one, run
from sandbox.image import base_image

SSH_USER = "deployer"
SSH_CONTAINER_PORT = 22
READY_TIMEOUT_SECONDS = 90
CCACHE_FOLDER = "/var/cache/local-llm/ccache"
# Below the ports that Linux hands out by itself, so that none is taken while the container restarts.
PORT_RANGE = range(20000, 32000)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing uses now."""
    for port in random.sample(PORT_RANGE, 100):
        if can_bind("127.0.0.1", port):
            return port
    raise SandboxError(
        f"No free port of 127.0.0.1 from {PORT_RANGE.start} to {PORT_RANGE.stop}. Free some and run this again."
    )


def ssh_key_pair() -> tuple[Path, str]:
    """The private key's path and the public key's line; made once for all sandbox machines of this user."""
    path = cache_dir() / "id_ed25519"
    public_path = path.with_suffix(".pub")
    with only_one("key"):
        if not public_path.exists():
            key = Ed25519PrivateKey.generate()
            temporary = path.with_name(f"id_ed25519.{uuid.uuid4().hex[:8]}")
            temporary.touch(mode=0o600)
            temporary.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
            temporary.replace(path)
            public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
            public_path.write_text(f"{public.decode()} local-llm-sandbox\n")
    return path, public_path.read_text().strip()


class SandboxHost(Switched):
    """One container that looks like a VPS over SSH. Use as a context manager, or start() and leave it
    running.

    `image` is a name known to `base_image`, `role` the label's value (`demo` or `test`), `extra_ports`
    further TCP ports of the container to publish on 127.0.0.1 (see `host_port`), `volumes` folders that lie on the
    engine's own disk instead of its layers. `ccache` keeps compiled
    objects in a volume between machines of the same image; None means yes unless the environment has
    LOCAL_LLM_SANDBOX_CCACHE=0.
    """

    def __init__(
        self,
        image: str,
        *,
        name: str | None = None,
        role: str = "test",
        extra_ports: Sequence[int] = (),
        volumes: Sequence[str] = (),
        ccache: bool | None = None,
    ) -> None:
        self.image = image
        self.name = name or f"local-llm-sandbox-{role}-{uuid.uuid4().hex[:8]}"
        self.role = role
        self.ssh_user = SSH_USER
        self.ssh_key, self._public_key = ssh_key_pair()
        self._ccache = os.environ.get("LOCAL_LLM_SANDBOX_CCACHE", "1") != "0" if ccache is None else ccache
        self._volumes = tuple(volumes)
        self._ports = dict.fromkeys((SSH_CONTAINER_PORT, *extra_ports), 0)
        # The Docker SDK is untyped.
        self._container: Any = None

    @classmethod
    def attach(cls, name: str) -> Self:
        """The machine of that name, started earlier by another process.

        Raises SandboxError if there is none.
        """
        containers = DockerClient().client.containers.list(all=True, filters={"name": f"^/?{name}$", "label": LABEL})
        if not containers:
            raise SandboxError(f"There is no sandbox machine {name}. Run `make demo`.")
        container = containers[0]
        host = cls(container.labels[f"{LABEL}.image"], name=name, role=container.labels[LABEL])
        host._container = container
        bindings = container.attrs["HostConfig"]["PortBindings"]
        host._ports = {int(port.split("/")[0]): int(found[0]["HostPort"]) for port, found in bindings.items()}
        return host

    @property
    def ssh_port(self) -> int:
        """Port of 127.0.0.1 that leads to the machine's sshd; the same after a restart."""
        return self.host_port(SSH_CONTAINER_PORT)

    def host_port(self, container_port: int) -> int:
        """Port of 127.0.0.1 that leads to a published port of the machine."""
        return self._ports[container_port]

    @property
    def known_hosts(self) -> Path:
        """known_hosts file with this machine's host keys."""
        return cache_dir() / "hosts" / self.name / "known_hosts"

    @property
    def container_id(self) -> str:
        """The container's full id."""
        return str(self._container.id)

    def start(self) -> Self:
        """Make the container, start it, and wait until it can be deployed to.

        Raises SandboxError when it does not come up.
        """
        tag = base_image(self.image)
        testcontainers_config.ryuk_disabled = True
        container = (
            DockerContainer(tag, network=None)
            .with_name(self.name)
            .with_kwargs(
                # The default bridge, whatever networks this process is in: the hub listens on its gateway.
                network="bridge",
                extra_hosts={"host.docker.internal": "host-gateway"},
                hostname="sandbox",
                # As on a VPS, localhost is ::1 first.
                sysctls={"net.ipv6.conf.lo.disable_ipv6": "0"},
                labels={LABEL: self.role, f"{LABEL}.image": self.image},
                # systemd as PID 1, without --privileged: that fails where the engine itself lacks
                # CAP_SYS_RESOURCE.
                cap_add=["ALL"],
                cap_drop=["SYS_RESOURCE"],
                security_opt=["seccomp=unconfined", "apparmor=unconfined"],
                # Right for cgroups v1 and v2 alike: in a private namespace systemd would not find its own path
                # below the host's mount (moby/moby#42275).
                cgroupns="host",
                stop_signal="SIGRTMIN+3",
                mounts=[Mount(folder, source=None) for folder in self._volumes],
            )
        )
        container.with_volume_mapping("/sys/fs/cgroup", "/sys/fs/cgroup", "rw")
        container.tmpfs.update({"/run": "rw,nosuid,nodev,mode=755", "/run/lock": "rw,nosuid,nodev,noexec,size=5m"})
        if self._ccache:
            container.with_volume_mapping(self._ccache_volume(), CCACHE_FOLDER, "rw")
        # The engine takes (address, port) as well, unlike the type that testcontainers gives the dictionary.
        published: dict[str, Any] = container.ports
        for port in self._ports:
            self._ports[port] = free_port()
            published[f"{port}/tcp"] = ("127.0.0.1", self._ports[port])
        container.start()
        self._container = container.get_wrapped_container()
        self.wait_until_ready()
        return self

    def resume(self) -> None:
        """Start an attached machine that was stopped, for example with its engine; wait until it is ready."""
        if not self.is_running():
            self._container.start()
        self.wait_until_ready()

    def stop(self) -> None:
        """Remove the container and what belongs to it alone. The ccache volume stays."""
        if self._container is not None:
            self._container.remove(force=True, v=True)
            self._container = None
        shutil.rmtree(self.known_hosts.parent, ignore_errors=True)

    def restart(self) -> None:
        """Reboot: systemd shuts down and starts again; the disk stays, /run and processes do not.

        Waits until it is ready.
        """
        self._container.restart(timeout=60)
        self.wait_until_ready()

    def exec(self, *argv: str, check: bool = True) -> str:
        """Run a command as root, past SSH, and return its standard output.

        Raises SandboxError with its last lines of error output when it fails and `check` is set.
        """
        # Not by the SDK: its exec_run loses what the engine sends together with the head of its answer.
        done = subprocess.run(["docker", "exec", self.name, *argv], capture_output=True)
        text = done.stdout.decode(errors="replace")
        if check and done.returncode != 0:
            problem = done.stderr.decode(errors="replace") or text
            raise failed_in(self.name, " ".join(argv), done.returncode, problem)
        return text

    def ssh_argv(self, *command: str) -> list[str]:
        """Command line of ssh to this machine as its user; `command` is run there by a shell."""
        return [
            *("ssh", "-i", str(self.ssh_key), "-p", str(self.ssh_port)),
            *("-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=yes", "-o", "LogLevel=ERROR"),
            *("-o", f"UserKnownHostsFile={self.known_hosts}"),
            *(f"{self.ssh_user}@127.0.0.1", *command),
        ]

    def ssh(
        self, command: str, *, check: bool = True, timeout_seconds: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command over SSH as the machine's user.

        Raises SandboxError when it fails and `check` is set.
        """
        result = run(self.ssh_argv(command), check=False, timeout_seconds=timeout_seconds)
        if check and result.returncode != 0:
            raise failed_in(self.name, command, result.returncode, result.stderr or result.stdout)
        return result

    def is_running(self) -> bool:
        """Whether the container runs now."""
        if self._container is None:
            return False
        self._container.reload()
        return bool(self._container.status == "running")

    def wait_until_ready(self) -> None:
        """Wait for systemd (running or degraded) and sshd, then record the host keys."""
        deadline = time.monotonic() + READY_TIMEOUT_SECONDS
        state = self._wait_for_systemd(deadline)
        self._authorize_key()
        if not self._wait_for_sshd(deadline):
            raise SandboxError(f"sshd of {self.name} does not answer; systemd says {state}. {self._diagnosis()}")
        self._record_host_keys()

    def _wait_for_systemd(self, deadline: float) -> str:
        state = "no answer"
        while time.monotonic() < deadline:
            if not self.is_running():
                logs = self._container.logs(tail=5).decode(errors="replace")
                raise SandboxError(f"The container {self.name} stopped while booting: {last_lines(logs)}")
            # Until PID 1 has made its bus, this fails: that is a part of booting.
            state = self.exec("systemctl", "is-system-running", check=False).strip() or state
            if state in {"running", "degraded"}:
                return state
            time.sleep(0.2)
        raise SandboxError(
            f"systemd of {self.name} is not up after {READY_TIMEOUT_SECONDS} s ({state}). {self._diagnosis()}"
        )

    def _wait_for_sshd(self, deadline: float) -> bool:
        while time.monotonic() < deadline:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self.ssh_port), timeout=2) as probe,
            ):
                # The engine's proxy accepts before anything listens inside: only a banner counts.
                if probe.recv(4) == b"SSH-":
                    return True
            time.sleep(0.2)
        return False

    def _authorize_key(self) -> None:
        script = 'printf "%s\\n" "$1" > "$2" && chown "$3:$3" "$2" && chmod 0600 "$2"'
        path = f"/home/{self.ssh_user}/.ssh/authorized_keys"
        self.exec("sh", "-c", script, "sh", self._public_key, path, self.ssh_user)

    def _record_host_keys(self) -> None:
        # Read past SSH, so nothing has to be trusted on first use.
        keys = self.exec("sh", "-c", "cat /etc/ssh/ssh_host_*_key.pub").splitlines()
        entries = [f"[127.0.0.1]:{port} {key}\n" for port in self._ports.values() for key in keys]
        self.known_hosts.parent.mkdir(parents=True, exist_ok=True)
        self.known_hosts.write_text("".join(entries))

    def _diagnosis(self) -> str:
        failed = self.exec("systemctl", "--failed", "--plain", "--no-legend", check=False)
        return f"Failed units: {last_lines(failed)}. Look inside with `docker exec -it {self.name} bash`."

    def _ccache_volume(self) -> str:
        name = f"local-llm-sandbox-compiled-{self.image}"
        run(["docker", "volume", "create", "--label", f"{LABEL}=ccache", name])
        return name
