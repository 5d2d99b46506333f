"""pyinfra inventory: the one machine that `make demo` runs.

Use it from the repository's root: `pyinfra -y sandbox/inventory.py deploy.py`.
"""

from sandbox.common import SandboxError
from sandbox.state import State, connection_data, state_settings

try:
    _state = State.load()
except SandboxError as error:
    raise SystemExit(f"error: {error}") from None

_connection = connection_data(
    ssh_port=_state.ssh_port, ssh_user=_state.ssh_user, ssh_key=_state.ssh_key, known_hosts=_state.known_hosts
)

sandbox = [("sandbox", {**_connection, **state_settings(_state)})]
