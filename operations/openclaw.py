"""Wiring a user's installed OpenClaw, by its own CLI and only where its configuration is not as wanted."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pyinfra import host
from pyinfra.api import StringCommand, operation
from pyinfra.api.command import PyinfraCommand

from facts.base import read
from facts.files import FileDigests
from facts.openclaw import Installation, InstallationState, Wiring, run_as
from operations.remote import call, fail, say
from operations.shell import word

FILE = "openclaw.json"
SAVED_SUFFIX = ".local-llm-saved"
"""Of the script's copy of the configuration, which is there only while it runs, or after it was killed."""
KEYS = (
    ("agents", "defaults", "model"),
    ("agents", "defaults", "utilityModel"),
    ("plugins", "load", "paths"),
)
"""What is compared besides the keys of the patch itself."""


@dataclass(frozen=True)
class Where:
    """Whose OpenClaw. The paths are empty to be found: see `facts.openclaw.Installation`."""

    user: str
    state_directory: str = ""
    command: str = ""
    node: str = ""


@dataclass(frozen=True)
class Wanted:
    """What that OpenClaw's configuration is to hold, beside all that it holds already."""

    patch: Mapping[str, Any]
    fallback: str | None
    plugin_directory: str | None


@operation()
def wired(where: Where, wanted: Wanted, script: str) -> Generator[PyinfraCommand, None, None]:
    """Ensure that the configuration holds what is wanted; reads it without OpenClaw's CLI, and writes it only by it.

    The script, run as the user, tries the change, keeps a copy, writes, validates, asks the model a question, and puts
    the configuration back where any of that fails.

    + where: whose OpenClaw
    + wanted: what its configuration is to hold
    + script: path of the script that makes it so
    """
    installation = read(Installation, user=where.user, command=where.command, node=where.node)
    if failures := list(problems(where, installation)):
        yield call(lambda _state, host: fail(host, "\n".join([*failures, "Nothing was changed in OpenClaw."])))
        return
    file = configuration_file(where, installation)
    found = read(
        Wiring,
        user=where.user,
        file=file,
        keys=(*KEYS, *key_paths(wanted.patch)),
        environment=environment(where, installation),
    )
    missing = list(differences(wanted, found))
    if read(FileDigests, paths=(f"{file}{SAVED_SUFFIX}", f"{file}{SAVED_SUFFIX}.new")):
        missing.append("the end of a wiring that was interrupted")
    if not missing:
        host.noop(f"the OpenClaw of {where.user} is wired")
        return
    say(host, f"OpenClaw lacks: {', '.join(missing)}")
    arguments = " ".join(map(word, [script, *stale_fallbacks(wanted, found)]))
    yield StringCommand(run_as(where.user, environment(where, installation), f"sh {arguments}"))


def problems(where: Where, installation: InstallationState) -> Iterator[str]:
    """Why that OpenClaw cannot be wired, with what helps."""
    if not installation.home:
        yield f"openclaw_user = {where.user!r}: there is no such user. Create it and install OpenClaw for it."
        return
    if not installation.command:
        searched = f"no command {where.command}" if where.command else "no `openclaw` in the login shell's PATH"
        yield (
            f"{where.user} has {searched}. Install it as that user (`npm install -g openclaw`), or set "
            "openclaw_command to its path."
        )
        return
    if not installation.node_version:
        yield f"{where.user} has no Node.js beside {installation.command} or in the PATH: set openclaw_node."
    elif not satisfies(installation.node_version, installation.needs_node):
        yield (
            f"OpenClaw {installation.version} needs Node.js {installation.needs_node}; {installation.node} is "
            f"{installation.node_version}. Install a newer one, or set openclaw_node to its path."
        )


def satisfies(version: str, wanted: str) -> bool:
    """Whether a version lies in a range such as `>=24.16.0 <25 || >=26.1.0`; so does any in a range of other forms."""
    return any(all(_compares(version, part) for part in choice.split()) for choice in wanted.split("||"))


def _compares(version: str, comparator: str) -> bool:
    relation = comparator.rstrip("0123456789.")
    mine, limit = _numbers(version), _numbers(comparator.removeprefix(relation))
    match relation:
        case ">=":
            return mine >= limit
        case "<":
            return mine < limit
        case _:
            return True


def _numbers(version: str) -> tuple[int, int, int]:
    parts = [int(part) for part in version.split("-")[0].split(".") if part.isdigit()]
    major, minor, patch = (*parts, 0, 0, 0)[:3]
    return major, minor, patch


def configuration_file(where: Where, installation: InstallationState) -> str:
    """The configuration's path."""
    return f"{where.state_directory or f'{installation.home}/.openclaw'}/{FILE}"


def environment(where: Where, installation: InstallationState) -> dict[str, str]:
    """What the CLI is run with: the user's own home, and the Node.js that was found first in the PATH."""
    folders = [str(PurePosixPath(path).parent) for path in (installation.node, installation.command)]
    found = {
        "HOME": installation.home,
        "USER": where.user,
        "LOGNAME": where.user,
        "PATH": ":".join([*folders, "/usr/local/bin", "/usr/bin", "/bin"]),
        "LANG": "C.UTF-8",
        "NO_COLOR": "1",
        "OPENCLAW": installation.command,
    }
    return found | ({"OPENCLAW_STATE_DIR": where.state_directory} if where.state_directory else {})


def key_paths(patch: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The keys that a patch sets, each as the names on the way to it: down to what is no object, or an empty one."""
    return [
        (name, *rest)
        for name, value in patch.items()
        for rest in (key_paths(value) if isinstance(value, Mapping) and value else [()])
    ]


def differences(wanted: Wanted, found: Mapping[str, Any]) -> Iterator[str]:
    """What the configuration lacks, by its keys' names."""
    for path in key_paths(wanted.patch):
        if value_at(found, path) != value_at(wanted.patch, path):
            yield ".".join(path)
    if wanted.fallback is not None and wanted.fallback not in fallbacks(found):
        yield f"the fallback {wanted.fallback}"
    for name in stale_fallbacks(wanted, found):
        yield f"no fallback {name}"
    if wanted.plugin_directory and wanted.plugin_directory not in (value_at(found, ("plugins", "load", "paths")) or []):
        yield f"the plugin in {wanted.plugin_directory}"


def value_at(config: Mapping[str, Any], path: Sequence[str]) -> Any:
    """The value of a key; None where there is none."""
    value: Any = config
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def fallbacks(config: Mapping[str, Any]) -> list[str]:
    """The default chain of fallbacks; a model that is a text alone has none."""
    model = value_at(config, ("agents", "defaults", "model"))
    return list(model.get("fallbacks") or []) if isinstance(model, Mapping) else []


def stale_fallbacks(wanted: Wanted, found: Mapping[str, Any]) -> list[str]:
    """Fallbacks to a local model that was served before: the provider that they name is ours, and lacks them now."""
    if wanted.fallback is None:
        return []
    provider = wanted.fallback.split("/")[0]
    return [name for name in fallbacks(found) if name.startswith(f"{provider}/") and name != wanted.fallback]
