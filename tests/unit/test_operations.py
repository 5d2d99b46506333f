"""What operations would run, without a host."""

import json
import shlex
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operations import jobs
from operations.llama_cpp import Release, build_job, describe_ninja, fetch_job
from operations.model import Download, describe_bytes, download_job
from operations.remote import script
from operations.systemd import stamp

RELEASE = Release("https://example.net/llama.cpp", "0c1e5709" * 5, True, "x86_64 avx2")
DOWNLOAD = Download("https://example.net/m.gguf", "a" * 64, 1000, attempts=3, stall_seconds=5, insecure=False)


def test_a_release_is_named_by_all_that_it_is_made_from() -> None:
    other_commit = Release(RELEASE.repository, "f" * 40, True, RELEASE.cpu)
    portable = Release(RELEASE.repository, RELEASE.commit, False, RELEASE.cpu)
    other_cpu = Release(RELEASE.repository, RELEASE.commit, True, "x86_64 avx512")
    mirror = Release("https://mirror.example/llama.cpp", RELEASE.commit, True, RELEASE.cpu)
    assert len({release.id for release in (RELEASE, other_commit, portable, other_cpu)}) == 4
    assert mirror.id == RELEASE.id
    assert json.loads(RELEASE.manifest())["commit"] == RELEASE.commit


def test_downloads_speak_https_only_unless_allowed() -> None:
    assert "--proto =https --proto-redir =https " in download_job(DOWNLOAD, "/m/x.part", "u").script
    insecure = Download(**{**DOWNLOAD.__dict__, "insecure": True})
    assert "--proto =http,https " in download_job(insecure, "/m/x.part", "u").script


@pytest.mark.parametrize(
    "job",
    [
        fetch_job(RELEASE, "/var/cache/local-llm", "u"),
        build_job(RELEASE, "/var/cache/local-llm", "u", 2),
        download_job(DOWNLOAD, "/m/x.part", "u"),
    ],
    ids=lambda job: str(job.unit),
)
def test_scripts_of_jobs_are_shell(job: jobs.Job) -> None:
    subprocess.run(["/bin/sh", "-n", "-c", job.script], check=True)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30))
def test_a_script_reaches_the_shell_as_it_is(text: str) -> None:
    wrapped = script(f"printf %s {shlex.quote(text)}")
    done = subprocess.run(["/bin/sh", "-c", wrapped], capture_output=True, check=True)
    assert done.stdout.decode() == text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[97/214] Building CXX object x.o", "45 %, 97 of 214 files"),
        ("[214/214] Linking", "100 %, 214 of 214 files"),
        ("-- Configuring done", None),
        ("", None),
    ],
)
def test_ninjas_progress_in_words(line: str, words: str | None) -> None:
    assert describe_ninja(line) == words


def test_a_downloads_progress_in_words() -> None:
    assert describe_bytes("503000000", 1_117_320_736) == "45 %, 503 of 1117 MB"
    assert describe_bytes("", 10) is None


def test_a_stamp_keeps_its_parts_apart() -> None:
    assert stamp("ab", "c") != stamp("a", "bc")
    assert stamp("a", "b") == stamp("a", "b")
