"""What a power cut or a hostile build may leave, and what counts as whole."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checks.host import Host
from facts.llama_cpp import Content, Proof, ReleaseContent
from facts.model import ModelFiles
from operations.llama_cpp import Release, _recorded, fetch_job
from operations.remote import script
from operations.shell import moved_into_place

RELEASE = Release("https://example.net/llama.cpp", "0c1e5709" * 5, True, "x86_64 avx2")
BINARIES = ("llama-server", "llama-bench")


def release_in(directory: Path) -> Path:
    """A release as it is installed; its files are root's where root runs this."""
    (directory / "bin").mkdir(parents=True)
    for name in BINARIES:
        (directory / "bin" / name).write_bytes(name.encode() * 100)
        (directory / "bin" / name).chmod(0o755)
    subprocess.run(["/bin/sh", "-c", script(_recorded(RELEASE, str(directory)))], check=True)
    return directory


def content_of(directory: Path) -> Content:
    # Whose the files are is not looked at here: not everybody who tests is root.
    command = ReleaseContent().command(str(directory)).replace("755 0", f"755 {os.geteuid()}")
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=True)
    return ReleaseContent().process(done.stdout.splitlines())


def test_a_release_as_it_was_installed_is_whole(tmp_path: Path) -> None:
    content = content_of(release_in(tmp_path / "release"))
    assert content.proof(RELEASE.id) is Proof.WHOLE
    assert content.proof("another") is Proof.NONE
    assert content.manifest["commit"] == RELEASE.commit


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_release_that_was_changed_in_any_way_is_not_whole(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = release_in(tmp_path_factory.mktemp("damaged") / "release")
    file = directory / data.draw(st.sampled_from([f"bin/{name}" for name in BINARIES] + ["release.json"]))
    before = file.read_bytes()
    match data.draw(st.sampled_from(["cut", "zeroes", "bit", "remove", "link", "mode", "add"])):
        case "cut":
            file.write_bytes(before[: data.draw(st.integers(0, len(before) - 2))])
        case "zeroes":  # what a file system shows of blocks that never reached the disk
            place = data.draw(st.integers(0, len(before) - 2))
            file.write_bytes(before[:place] + bytes(len(before) - place))
        case "bit":
            file = directory / "bin" / "llama-server"
            place = data.draw(st.integers(0, file.stat().st_size - 1))
            content = bytearray(file.read_bytes())
            content[place] ^= 1 << data.draw(st.integers(0, 7))
            file.write_bytes(content)
        case "remove":
            file.unlink()
        case "link":
            file = directory / "bin" / "llama-server"
            file.rename(directory / "elsewhere")
            file.symlink_to(directory / "elsewhere")
        case "mode":
            (directory / "bin" / "llama-bench").chmod(0o777)
        case "add":
            (directory / "bin" / "llama-extra").write_text("x")
            (directory / "bin" / "llama-extra").chmod(0o755)
    assert content_of(directory).proof(RELEASE.id) is Proof.NONE


def test_a_release_without_recorded_checksums_is_to_be_tried(tmp_path: Path) -> None:
    directory = release_in(tmp_path / "release")
    (directory / "release.json").write_text(json.dumps({"release": RELEASE.id, "commit": RELEASE.commit}, indent=2))
    assert content_of(directory).proof(RELEASE.id) is Proof.UNRECORDED
    (directory / "bin" / "llama-server").write_bytes(b"")
    assert content_of(directory).proof(RELEASE.id) is Proof.NONE


@pytest.mark.parametrize("manifest", ["", "null", "[]", "{", '{"release": 5}'])
def test_a_manifest_that_is_none_proves_nothing(tmp_path: Path, manifest: str) -> None:
    directory = release_in(tmp_path / "release")
    (directory / "release.json").write_text(manifest)
    assert content_of(directory).proof(RELEASE.id) is Proof.NONE


def test_a_file_a_tree_and_a_link_are_moved(tmp_path: Path) -> None:
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "a b").write_text("x")
    (tmp_path / "file").write_text("new")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "old").write_text("old")
    for new, final in (("tree", "-tree"), ("file", "old"), ("link", "current")):
        subprocess.run(
            ["/bin/sh", "-c", script(moved_into_place(str(tmp_path / new), str(tmp_path / final)))], check=True
        )
    assert (tmp_path / "-tree" / "sub" / "a b").read_text() == "x"
    assert (tmp_path / "old").read_text() == "new"
    assert (tmp_path / "current").readlink() == Path("nowhere")


def test_what_the_checks_write_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, rename = os.fsync, Path.replace

    def record_sync(descriptor: int) -> None:
        done.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    def record_rename(path: Path, target: Path) -> Path:
        done.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(Path, "replace", record_rename)
    Host(tmp_path).replace("/drill.json", "{}", 0o600)
    assert done == ["file", "rename", "directory"]


def test_models_leftovers_and_strange_names(tmp_path: Path) -> None:
    for name in ("a.gguf", ".ab.taken", "a.gguf.stamp.new", "x;id>PWNED;.gguf", "b c.gguf", "-rf.gguf"):
        (tmp_path / name).write_text("x")
    (tmp_path / "link.gguf").symlink_to("a.gguf")
    (tmp_path / "incoming").mkdir()
    (tmp_path / "incoming" / "x;id>PWNED;.part").touch()
    done = subprocess.run(
        ["/bin/sh", "-c", ModelFiles().command(str(tmp_path))], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    found = ModelFiles().process(done.stdout.splitlines())
    assert {file.name for file in found.files} == {"a.gguf", "-rf.gguf"}
    assert set(found.leftovers) == {".ab.taken", "a.gguf.stamp.new"}
    assert found.has_downloads
    assert not done.stderr


class Repository:
    """A repository to fetch from, with files as a source has them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.git("init", "-q", str(path))
        for name in ("CMakeLists.txt", "src/a.c", "src/deep/b.c", "tool.sh"):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text(f"{name}\n" * 5)
        (path / "tool.sh").chmod(0o755)
        (path / ".gitignore").write_text("*.o\n")
        self.git("-C", str(path), "add", "-A")
        self.git("-C", str(path), "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "x")
        self.commit = self.git("-C", str(path), "rev-parse", "HEAD").strip()

    @staticmethod
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return Repository(tmp_path_factory.mktemp("upstream"))


def fetch(
    repository: Repository, scratch: Path, home: Path, after_checkout: str = ":"
) -> subprocess.CompletedProcess[str]:
    """Run the job's own script as its unit would, with a git that does something more after a checkout."""
    job = fetch_job(Release(str(repository.path), repository.commit, True, "x"), str(scratch), "nobody")
    (scratch / "source").mkdir(parents=True)
    bin_ = scratch / "bin"
    bin_.mkdir()
    real = subprocess.run(
        ["/bin/sh", "-c", "command -v git"], check=True, capture_output=True, text=True
    ).stdout.strip()
    (bin_ / "git").write_text(
        f'#!/bin/sh\n{real} "$@" || exit\ncase " $* " in *" checkout "*) {after_checkout} ;; esac\n'
    )
    (bin_ / "git").chmod(0o755)
    return subprocess.run(
        ["/bin/sh", "-euc", job.script], capture_output=True, text=True, check=False,
        env={"PATH": f"{bin_}:{os.environ['PATH']}", "HOME": str(home), **job.environment},
    )  # fmt: skip


def test_a_source_is_the_commits_whatever_configuration_lies_about(repository: Repository, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "hooks").mkdir(parents=True)
    for hook in ("post-checkout", "post-merge", "reference-transaction", "post-index-change"):
        (home / "hooks" / hook).write_text(f"#!/bin/sh\necho hostile >>{tmp_path}/hostile\n")
        (home / "hooks" / hook).chmod(0o755)
    (home / ".gitconfig").write_text(
        f"[core]\n\thooksPath = {home}/hooks\n\tfsmonitor = {home}/hooks/post-checkout\n\tautocrlf = true\n"
        f"\tattributesFile = {home}/attributes\n[init]\n\ttemplateDir = {home}\n"
        f'[filter "evil"]\n\tsmudge = sed s/a/b/\n'
    )
    (home / "attributes").write_text("* filter=evil\n")
    done = fetch(repository, tmp_path / "scratch", home)
    assert done.returncode == 0, done.stderr
    source = tmp_path / "scratch" / "source"
    assert (source / "src" / "a.c").read_text() == "src/a.c\n" * 5
    assert not (tmp_path / "hostile").exists()


DAMAGES = {
    "cut": ": >source/{}",
    "append": "echo x >>source/{}",
    "remove": "rm source/{}",
    "replace": "printf x >t; mv t source/{}",
    "link": "ln -sf /etc/passwd source/{}",
    "mode": "chmod -x source/tool.sh; chmod +x source/src/a.c",
    "same size and time": "cp -p source/{0} t; tr a-z b-za <t >source/{0}; touch -r t source/{0}",
    "extra": "touch source/src/extra.c",
    "ignored": "touch source/src/a.o",
    "objects": "for o in source/.git/objects/pack/*.pack source/.git/objects/??/*; do "
    "if [ -f $o ]; then chmod u+w $o; : >$o; fi; done",
    "one object": "o=$(git -C source rev-parse HEAD:{} | sed s,..,source/.git/objects/\\&/,); chmod u+w $o; : >$o",
    "index and a file": ": >source/.git/index; : >source/{}",
}


@pytest.mark.parametrize("file", ["CMakeLists.txt", "src/deep/b.c"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_source_that_git_cannot_vouch_for_is_not_built(
    repository: Repository, tmp_path: Path, damage: str, file: str
) -> None:
    code = f"(cd {tmp_path}/scratch; {DAMAGES[damage].format(file)})"
    done = fetch(repository, tmp_path / "scratch", tmp_path, after_checkout=code)
    assert done.returncode != 0, done.stdout + done.stderr
