"""An installed OpenClaw: who has it, what runs it, and the part of its configuration that the wiring is about.

`Installation` is plain POSIX sh, for a host on which nothing is installed yet. `Wiring` prints the keys that the wiring
writes and no others: what else is in a user's configuration, providers' keys among it, never leaves the host. Neither
starts OpenClaw's CLI, which takes seconds, unless parts of the configuration are in other files.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from facts.base import HostFact, framed
from facts.machine import parse_sections
from operations.shell import word

SHELL_SECONDS = 20
"""A login shell runs the user's own start files, which may hang."""


def run_as(user: str, environment: Mapping[str, str], command: str) -> str:
    """A shell command of root's that runs another one as a user, in its home, with this environment and no other."""
    variables = " ".join(word(f"{name}={value}") for name, value in environment.items())
    return f"runuser -u {word(user)} -- env -i -C {word(environment['HOME'])} {variables} {command}"


@dataclass(frozen=True)
class InstallationState:
    """Where OpenClaw and its Node.js are for a user. What was not found is empty.

    `needs_node` is the range that OpenClaw's own package.json asks for, such as `>=24.16.0 <25 || >=26.1.0`.
    """

    home: str = ""
    command: str = ""
    version: str = ""
    needs_node: str = ""
    node: str = ""
    node_version: str = ""

    @property
    def is_absent(self) -> bool:
        """Whether the user is there, and has no OpenClaw."""
        return bool(self.home) and not self.command


_INSTALLATION = rf"""
user=$1 command=$2 node=$3
home=$(getent passwd "$user" | cut -d: -f6)
echo @home; echo "$home"
[ -d "$home" ] || exit 0
as_user() {{ (cd / && runuser -u "$user" -- timeout {SHELL_SECONDS} "$@" </dev/null 2>/dev/null); }}
shell_path=$(as_user env -i HOME="$home" USER="$user" LOGNAME="$user" PATH=/usr/local/bin:/usr/bin:/bin \
    bash -lc 'printf "\n:PATH:%s\n" "$PATH"' | sed -n 's/^:PATH://p')
find_in_path() {{ (PATH="$2:$shell_path"; command -v "$1") || true; }}
[ -n "$command" ] || command=$(find_in_path openclaw "$home/.npm-global/bin:$home/.local/bin")
[ -x "$command" ] || command=
echo @command; echo "$command"
[ -n "$command" ] || exit 0
package=$(dirname "$(readlink -f "$command")")/package.json
echo @version; sed -n 's/^ *"version": "\([^"]*\)".*/\1/p' "$package" 2>/dev/null | head -n 1
echo @needs_node; sed -n '/"engines"/,/}}/s/.*"node": "\([^"]*\)".*/\1/p' "$package" 2>/dev/null | head -n 1
[ -n "$node" ] || node=$(find_in_path node "$(dirname "$command")")
echo @node; echo "$node"
echo @node_version; [ -z "$node" ] || as_user "$node" --version
true
"""


class Installation(HostFact[InstallationState]):
    """A user's home, its `openclaw` command, that one's version and its Node.js.

    `command` and `node` are paths, or empty to look for them: where npm installs for one user, beside the command, and
    in the PATH of the user's login shell.
    """

    def command(self, user: str, command: str = "", node: str = "") -> str:
        return framed(
            " ".join(["/bin/sh -c", shlex.quote(_INSTALLATION.strip()), "sh", word(user), word(command), word(node)])
        )

    def parse(self, output: list[str]) -> InstallationState:
        return parse_installation(output)


def parse_installation(output: list[str]) -> InstallationState:
    """Read the fact's output; what is missing stays empty."""
    sections = parse_sections(output)

    def first(name: str) -> str:
        return next((line.strip() for line in sections.get(name, []) if line.strip()), "")

    return InstallationState(
        home=first("home"),
        command=first("command"),
        version=first("version"),
        needs_node=first("needs_node"),
        node=first("node"),
        node_version=first("node_version").removeprefix("v"),
    )


_WIRING = '''
import json, os, subprocess, sys

path, keys = sys.argv[1], json.loads(sys.argv[2])
openclaw = os.environ["OPENCLAW"]
json5 = """
const fs = require("fs");
const parser = require("module").createRequire(fs.realpathSync(process.argv[1]))("json5");
process.stdout.write(JSON.stringify(parser.parse(fs.readFileSync(process.argv[2], "utf8"))));
"""


def output(*command):
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:
        return None
    return json.loads(done.stdout) if done.returncode == 0 else None


try:
    with open(path) as file:
        text = file.read()
except FileNotFoundError:
    text = "{}"
try:
    config = json.loads(text)
except ValueError:
    # Written by hand. OpenClaw brings the parser that it reads this with.
    config = output("node", "-e", json5, openclaw, path)
# Parts in other files, or an OpenClaw without that parser.
if not isinstance(config, dict) or "$include" in text:
    config = {name: output(openclaw, "config", "get", name, "--json") for name in {key[0] for key in keys}}
values = {}
for key in keys:
    source, target = config, values
    for name in key[:-1]:
        source = source.get(name) if isinstance(source, dict) else None
        target = target.setdefault(name, {})
    if isinstance(source, dict) and key[-1] in source:
        target[key[-1]] = source[key[-1]]
print(json.dumps(values))
'''


class Wiring(HostFact[dict[str, Any]]):
    """Some keys of a user's configuration file, in the shape of that file; those that it does not have are left out.

    `keys` are given as the names on the way to each; `environment` is what OpenClaw is run with where it must be asked.
    """

    def command(self, user: str, file: str, keys: Sequence[Sequence[str]], environment: Mapping[str, str]) -> str:
        wanted = json.dumps([list(key) for key in keys])
        script = f"python3 -c {shlex.quote(_WIRING.strip())} {word(file)} {word(wanted)}"
        return framed(f"command -v python3 >/dev/null || exit 0; {run_as(user, environment, script)}")

    def parse(self, output: list[str]) -> dict[str, Any]:
        found: dict[str, Any] = json.loads("".join(output) or "{}")
        return found
