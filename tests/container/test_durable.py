"""What a power cut leaves half done, and what a hostile build leaves behind: the next deploy makes up for it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator

import pytest

from tests.container.conftest import SWAP_FOLDER
from tests.container.machine import Machine

CURRENT = "/opt/local-llm/current"
MODELS = "/opt/local-llm/models"
SCRATCH = "/var/cache/local-llm"

pytestmark = pytest.mark.distribution(-1)


def sums(machine: Machine) -> str:
    return machine.sh(f"sha256sum {CURRENT}/bin/*")


def release_directory(machine: Machine) -> str:
    return machine.sh(f"readlink -f {CURRENT}")


def manifest(machine: Machine) -> dict[str, object]:
    found: dict[str, object] = json.loads(machine.sh(f"cat {CURRENT}/release.json"))
    return found


def test_a_manifest_says_what_is_installed(deployed: Machine) -> None:
    files = {f"bin/{name}" for name in ("llama-bench", "llama-server")}
    found = {name: deployed.sh(f"sha256sum <{CURRENT}/{name} | cut -d ' ' -f 1") for name in files}
    recorded = manifest(deployed)["files"]
    assert isinstance(recorded, dict)
    assert {name: sha256 for name, (sha256, _) in recorded.items()} == found


def test_a_release_of_the_version_before_is_tried_and_kept(deployed: Machine) -> None:
    earlier = {name: value for name, value in manifest(deployed).items() if name != "files"}
    deployed.sh(f"printf %s {shlex.quote(json.dumps(earlier, indent=2))} >{CURRENT}/release.json")
    fetched, pid = deployed.sh("stat -c %Y /var/log/local-llm/local-llm-fetch.log"), deployed.main_pid()
    run = deployed.deploy()
    assert run.succeeded, run.output
    assert run.changed == 1
    assert "files" in manifest(deployed)
    assert deployed.sh("stat -c %Y /var/log/local-llm/local-llm-fetch.log") == fetched
    assert deployed.main_pid() == pid


def test_a_cut_off_release_is_built_again_whatever_an_earlier_build_left(deployed: Machine) -> None:
    before, release = sums(deployed), release_directory(deployed)
    # As after a power cut: the name is there, the content is not. And its manifest is the earlier version's.
    earlier = {name: value for name, value in manifest(deployed).items() if name != "files"}
    deployed.sh(
        f"printf %s {shlex.quote(json.dumps(earlier))} >{release}/release.json; "
        f"head -c 8000000 {release}/bin/llama-server >/tmp/part; install -m 0755 /tmp/part {release}/bin/llama-server"
    )
    # What a build of another commit could leave while it owned the whole directory.
    hook = f"#!/bin/sh\nfind {SCRATCH}/source -name ggml.c -exec truncate -s 0 {{}} +\n"
    deployed.sh(
        f"cd {SCRATCH}; mkdir -p hooks source/.git/hooks .config/git; for h in hooks source/.git/hooks; do "
        f"printf %s {shlex.quote(hook)} >$h/post-checkout; chmod 755 $h/post-checkout; done; "
        f"printf '[core]\\n\\thooksPath = {SCRATCH}/hooks\\n\\tfsmonitor = {SCRATCH}/hooks/post-checkout\\n' "
        "| tee .gitconfig .config/git/config source/.git/config >/dev/null; "
        ": >source/.git/index; : >source/CMakeLists.txt; ln -s /etc build; mkdir ccache/0; "
        "chown -hR local-llm-build: .gitconfig .config hooks source build"
    )
    run = deployed.deploy()
    assert run.succeeded, run.output
    assert "does not run here: building it again" in run.output
    assert sums(deployed) == before
    assert "files" in manifest(deployed)
    assert deployed.sh(f"ls -A {SCRATCH}") == "ccache"
    caches = deployed.sh(f"ls {SCRATCH}/ccache").split()
    assert deployed.source.commit in caches
    assert {len(name) for name in caches} == {40}
    assert deployed.sh(f"[ /proc/{deployed.main_pid()}/exe -ef {CURRENT}/bin/llama-server ] && echo same") == "same"
    assert deployed.answers()
    assert deployed.deploy().changed == 0


@pytest.fixture
def without_model(deployed: Machine) -> Iterator[Machine]:
    """The machine, whose model has to be fetched again; it has it in the end."""
    kept = deployed.sh("mktemp -d /opt/local-llm/kept.XXXXXX")
    deployed.sh(f"mv {MODELS}/tiny-* {kept}")
    yield deployed
    deployed.sh(f"mv -n {kept}/* {MODELS}/; rm -r {kept}; rm -rf {MODELS}/incoming/*")


def test_only_a_plain_file_that_nobody_writes_to_becomes_the_model(without_model: Machine) -> None:
    tiny = without_model.source.models["tiny"]
    incoming = f"{MODELS}/incoming"
    part = f"{incoming}/{tiny.sha256}.part"
    name = f"tiny-{tiny.sha256[:16]}.gguf"
    without_model.sh(
        f"cp /opt/local-llm/kept.*/{name} {part}; ln {part} {incoming}/other; chown local-llm-build: {incoming}/*"
    )
    run = without_model.deploy()
    assert run.status == 1
    assert "regular file, links: 2" in run.output
    assert without_model.sh(f"ls -A {MODELS}") == "incoming"
    without_model.sh(
        f"rm {incoming}/other; cp /opt/local-llm/kept.*/{name} {part}; touch '{incoming}/x;id>PWNED;.part'; "
        f"chown local-llm-build: {incoming}/*; "
        f"systemd-run --quiet --unit=writer --uid=local-llm-build sh -c 'exec 3>>{part}; sleep 600'; sleep 1"
    )
    run = without_model.deploy()
    assert run.succeeded, run.output
    assert without_model.show("writer", "ActiveState") != "active"
    assert without_model.sh(f"ls -A {incoming}") == ""
    assert without_model.sh("find / -xdev -name PWNED") == ""
    assert without_model.answers()


def test_what_cut_operations_left_is_removed(deployed: Machine) -> None:
    release = deployed.sh(f"basename $(readlink {CURRENT})")
    leftovers = [
        "/etc/local-llm/.haproxy.cfg.new",
        "/etc/systemd/system/.local-llm.service.new",
        "/etc/local-llm/secrets/.cloud.env.new",
        "/etc/.fstab.new",
        f"{SWAP_FOLDER}/local-llm.new",
        f"{MODELS}/.{'a' * 64}.taken",
        f"{MODELS}/tiny-{'a' * 16}.gguf.stamp.new",
        f"{MODELS}/incoming/{'a' * 64}.part",
        f"/opt/local-llm/releases/{release}.partial/bin/llama-server",
    ]
    # Of modules that were moved or removed since.
    leftovers += ["/opt/local-llm/checks/moved.py", "/opt/local-llm/checks/room/__pycache__/removed.cpython-313.pyc"]
    for file in leftovers:
        deployed.sh(f"mkdir -p $(dirname {file}); echo half >{file}")
    deployed.sh("ln -s releases/nothing /opt/local-llm/.current.new")
    run = deployed.deploy()
    assert run.succeeded, run.output
    for file in [*leftovers, "/opt/local-llm/.current.new"]:
        assert deployed.sh(f"ls -d {file}", check=False) == "", file
    assert deployed.sh("ls /opt/local-llm/releases | grep -c partial || true") == "0"
    assert deployed.sh("ls -d /opt/local-llm/checks/room", check=False) == ""
    assert deployed.deploy().changed == 0
