"""What the demo remembers, in `.sandbox/state.json`, and the settings that a sandbox deploy overrides."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from sandbox.common import REPOSITORY_ROOT, SandboxError

STATE_FILE = REPOSITORY_ROOT / ".sandbox" / "state.json"


@dataclass(frozen=True)
class State:
    """The running demo: the machine, how to reach it, the hub, and what the hub serves."""

    machine: str
    image: str
    ssh_port: int
    ssh_user: str
    ssh_key: str
    known_hosts: str
    hub_pid: int
    hub_bind: str
    hub_port: int
    git_url: str
    commit: str
    model_url: str
    model_sha256: str
    model_size_bytes: int

    @classmethod
    def load(cls, path: Path = STATE_FILE) -> Self:
        """Read the state. Raises SandboxError when there is none, or one of another version."""
        try:
            return cls(**json.loads(path.read_text()))
        except FileNotFoundError:
            raise SandboxError("There is no sandbox machine. Run `make demo`.") from None
        except (TypeError, ValueError) as error:
            raise SandboxError(f"{path} is not readable ({error}). Run `make demo-down`, then `make demo`.") from error

    def save(self, path: Path = STATE_FILE) -> None:
        """Write the state in one step."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(self), indent=2) + "\n")
        temporary.replace(path)


def sandbox_settings(
    *, git_url: str, commit: str, model_url: str, model_sha256: str, model_size_bytes: int
) -> dict[str, object]:
    """Overrides of the project's settings: everything that is downloaded comes from the hub."""
    return {
        "llama_cpp_repository": git_url,
        "llama_cpp_commit": commit,
        "model": "custom",
        "model_name": "tiny",
        "model_url": model_url,
        "model_sha256": model_sha256,
        "model_size_bytes": model_size_bytes,
        # 2 x 1 layer x 1 KV head x 64 x 2 bytes, see tiny_model.py.
        "model_kv_bytes_per_token": 256,
        "allow_insecure_downloads": True,
    }


def state_settings(state: State) -> dict[str, object]:
    """The overrides for the running demo."""
    return sandbox_settings(
        git_url=state.git_url,
        commit=state.commit,
        model_url=state.model_url,
        model_sha256=state.model_sha256,
        model_size_bytes=state.model_size_bytes,
    )


def connection_data(*, ssh_port: int, ssh_user: str, ssh_key: Path | str, known_hosts: Path | str) -> dict[str, object]:
    """pyinfra's host data for the way in, with the machine's host keys required to match."""
    return {
        "ssh_hostname": "127.0.0.1",
        "ssh_port": ssh_port,
        "ssh_user": ssh_user,
        "ssh_key": str(ssh_key),
        "ssh_known_hosts_file": str(known_hosts),
        "ssh_strict_host_key_checking": "yes",
        "ssh_allow_agent": False,
        "ssh_look_for_keys": False,
    }
