"""The script that wires OpenClaw, run with a command line that stands in for OpenClaw's and can fail."""

import json
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from settings import Settings
from tasks import openclaw
from tasks.rendering import TEMPLATES

# Writes what was asked of it to `calls`; every writing command changes the file; fails where FAIL_AT matches, and kills
# the script and itself where KILL_AT does.
CLI = """#!/bin/sh
echo "$*" >> "$HOME/calls"
case "$*" in
    *"$FAIL_AT"*) echo "OpenClaw's own words"; exit 1 ;;
    *"$KILL_AT"*) kill -KILL 0 ;;
    *--dry-run* | "config validate"* | infer*) ;;
    *) echo "{\\"written by\\": \\"$1 $2\\"}" > "$HOME/.openclaw/openclaw.json" ;;
esac
"""
BY_HAND = "// a comment\n{ models: {} }\n"


@dataclass
class Home:
    """A user's home with an OpenClaw in it."""

    path: Path
    script: Path

    @property
    def file(self) -> Path:
        return self.path / ".openclaw" / "openclaw.json"

    @property
    def calls(self) -> list[str]:
        return (self.path / "calls").read_text().splitlines()

    def others(self) -> set[str]:
        return {file.name for file in self.file.parent.iterdir()} - {self.file.name}

    def run(
        self, *arguments: str, fail_at: str = "nothing", kill_at: str = "nothing"
    ) -> subprocess.CompletedProcess[str]:
        (self.path / "calls").unlink(missing_ok=True)
        return subprocess.run(
            ["/bin/sh", str(self.script), *arguments],
            env={"PATH": os.environ["PATH"], "HOME": str(self.path), "FAIL_AT": fail_at, "KILL_AT": kill_at,
                 "OPENCLAW": str(self.path / "openclaw")},
            capture_output=True, text=True, check=False, start_new_session=True,
        )  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return made_home(tmp_path)


def made_home(path: Path, **settings: Any) -> Home:
    values = Settings(**settings)
    files = {file.path: file for file in openclaw.configuration_files(values, openclaw.patch(values, {}))}
    script = path / "apply.sh"
    script.write_text(files[openclaw.SCRIPT].content)
    cli = path / "openclaw"
    cli.write_text(CLI)
    cli.chmod(0o755)
    (path / ".openclaw").mkdir()
    return Home(path, script)


def test_it_tries_first_validates_and_asks_last(home: Home) -> None:
    done = home.run()
    assert done.returncode == 0, done.stderr
    model = "local-llm/qwen2.5-1.5b-instruct"
    assert [call.split("--prompt")[0].strip() for call in home.calls] == [
        f"config patch --file {openclaw.PATCH} --dry-run",
        f"config patch --file {openclaw.PATCH}",
        f"models fallbacks add {model}",
        "config validate --json",
        f"infer model run --local --model {model}",
    ]


def test_the_original_is_kept_once_with_its_comments(home: Home) -> None:
    home.file.write_text(BY_HAND)
    assert home.run().returncode == 0
    assert home.run().returncode == 0
    assert home.others() == {"openclaw.json.before-local-llm"}
    assert (home.file.parent / "openclaw.json.before-local-llm").read_text() == BY_HAND


def test_what_was_written_by_hand_later_is_kept_beside_it(home: Home) -> None:
    home.file.write_text(BY_HAND)
    home.run()
    home.file.write_text("// another comment\n{}\n")
    home.run()
    assert home.others() == {"openclaw.json.before-local-llm", "openclaw.json.before-local-llm-2"}
    assert (home.file.parent / "openclaw.json.before-local-llm").read_text() == BY_HAND


@pytest.mark.parametrize("step", ["models fallbacks add", "config validate", "infer model run"])
def test_a_failing_step_puts_back_what_was_there(home: Home, step: str) -> None:
    home.file.write_text(BY_HAND)
    home.file.chmod(0o600)
    done = home.run(fail_at=step)
    assert done.returncode == 1
    assert "OpenClaw's own words" in done.stderr
    assert "put back" in done.stderr
    assert home.file.read_text() == BY_HAND
    assert home.file.stat().st_mode & 0o777 == 0o600
    assert home.others() == {"openclaw.json.before-local-llm"}


def test_a_refused_change_is_never_written(home: Home) -> None:
    home.file.write_text(BY_HAND)
    done = home.run(fail_at="--dry-run")
    assert done.returncode == 1
    assert len(home.calls) == 1
    assert home.file.read_text() == BY_HAND
    assert home.others() == set()


def test_where_there_was_no_configuration_none_stays_after_a_failure(home: Home) -> None:
    assert home.run(fail_at="config validate").returncode == 1
    assert not home.file.exists()
    assert home.others() == set()


def test_after_a_kill_the_next_run_begins_with_what_was_there(home: Home) -> None:
    home.file.write_text(BY_HAND)
    home.file.chmod(0o600)
    assert home.run(kill_at="config validate").returncode == -signal.SIGKILL
    left = home.file.read_text()
    assert left != BY_HAND
    done = home.run(fail_at="--dry-run")
    assert "an earlier run was interrupted" in done.stdout
    assert home.file.read_text() == BY_HAND
    assert home.file.stat().st_mode & 0o777 == 0o600
    assert home.others() == {"openclaw.json.before-local-llm", "openclaw.json.local-llm-interrupted"}
    assert (home.file.parent / "openclaw.json.local-llm-interrupted").read_text() == left


def test_every_configuration_that_an_interrupted_run_left_is_kept(home: Home) -> None:
    home.file.write_text(BY_HAND)
    for _ in range(2):
        home.run(kill_at="config validate")
        home.file.write_text(json.dumps({"changed": "since"}))
    assert home.run().returncode == 0
    assert len([name for name in home.others() if "interrupted" in name]) == 2


def test_a_copy_that_was_cut_short_is_never_put_back(home: Home) -> None:
    home.file.write_text(BY_HAND)
    (home.file.parent / "openclaw.json.local-llm-saved.new").write_text(BY_HAND[:5])
    home.run(fail_at="config validate")
    assert home.file.read_text() == BY_HAND
    assert home.others() == {"openclaw.json.before-local-llm"}


def test_former_fallbacks_are_removed_by_name(home: Home) -> None:
    home.run("local-llm/former")
    assert "models fallbacks remove local-llm/former" in home.calls


def test_the_plugin_is_linked_where_it_is_wanted_and_unlinked_after_a_failure(tmp_path: Path) -> None:
    home = made_home(tmp_path, openclaw_slim=True)
    assert home.run().returncode == 0
    assert f"plugins install --link {openclaw.SLIM_DIRECTORY} --force --accept-capabilities" in home.calls
    home.run(fail_at="config validate")
    assert home.calls[-1] == "plugins uninstall local-llm-slim --force"


def test_without_a_command_it_says_how_to_name_one(home: Home) -> None:
    (home.path / "openclaw").unlink()
    done = home.run()
    assert done.returncode == 1
    assert "OPENCLAW=/path/to/openclaw" in done.stderr


def test_every_template_of_the_plugin_is_deployed() -> None:
    deployed = {file.path for file in openclaw.plugin_files(Settings(openclaw_slim=True))}
    folder = TEMPLATES / openclaw.SLIM_DIRECTORY.lstrip("/")
    assert deployed == {f"{openclaw.SLIM_DIRECTORY}/{file.stem}" for file in folder.iterdir()}
    assert openclaw.plugin_files(Settings()) == []
