"""llama.cpp's source as a git repository, had from the package index instead of from GitHub.

The source distribution of llama-cpp-python carries llama.cpp's own shallow git repository: the pinned commit
with its real hash. So the sandbox deploys the very commit that a VPS gets by default, and git proves its
content.
"""

import shutil
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from sandbox.common import SandboxError, only_one, run

COMMIT = "0c1e57098bba43ac29e6e3b677cdceebdd22334f"
SDIST_VERSION = "0.3.36"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
DOWNLOAD_TIMEOUT_SECONDS = 900

GIT_FOLDER = PurePosixPath(f"llama_cpp_python-{SDIST_VERSION}/.git/modules/vendor/llama.cpp")


def llama_cpp_repository(cache: Path) -> tuple[Path, str]:
    """A bare repository below `cache` that git can fetch COMMIT from, and that commit; made on first use (76
    MB download).

    Raises SandboxError when git or the download fails.
    """
    repository = cache / "llama.cpp.git"
    with only_one("llama.cpp"):
        if not _has_commit(repository):
            _make_repository(repository)
    return repository, COMMIT


def _make_repository(repository: Path) -> None:
    cache = repository.parent
    with tempfile.TemporaryDirectory(dir=cache, prefix="llama.cpp-") as folder:
        sdist = _download_sdist(Path(folder))
        made = Path(folder) / "llama.cpp.git"
        run(["git", "init", "--quiet", "--bare", str(made)])
        _unpack_objects(sdist, made)
        git = ["git", f"--git-dir={made}"]
        run([*git, "fsck", "--connectivity-only"])
        run([*git, "update-ref", "refs/heads/master", COMMIT])
        run([*git, "symbolic-ref", "HEAD", "refs/heads/master"])
        # GitHub allows fetching a commit by its hash, and so must this repository.
        run([*git, "config", "uploadpack.allowReachableSHA1InWant", "true"])
        shutil.rmtree(repository, ignore_errors=True)
        made.rename(repository)


def _has_commit(repository: Path) -> bool:
    if not repository.exists():
        return False
    return (
        run(
            ["git", f"--git-dir={repository}", "rev-parse", "--verify", "-q", f"{COMMIT}^{{tree}}"], check=False
        ).returncode
        == 0
    )


def _download_sdist(folder: Path) -> Path:
    """pip download, pinned by hash.

    pip also prepares the package's metadata, with what requirements.txt pins for that; nothing is compiled.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"llama-cpp-python=={SDIST_VERSION} --hash=sha256:{SDIST_SHA256}\n")
    options = [
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-build-isolation",
        "--no-binary",
        "llama-cpp-python",
        "--require-hashes",
    ]
    argv = [sys.executable, "-m", "pip", "download", *options, "-r", str(requirements), "-d", str(folder)]
    run(argv, timeout_seconds=DOWNLOAD_TIMEOUT_SECONDS)
    found = list(folder.glob("llama_cpp_python-*.tar.gz"))
    if len(found) != 1:
        raise SandboxError(
            "pip downloaded no source distribution of llama-cpp-python. Check `pip config list`, run this again."
        )
    return found[0]


def _unpack_objects(sdist: Path, repository: Path) -> None:
    """Copy the objects and the list of shallow commits.

    The rest of that folder is the settings of the machine that made it.
    """
    with tarfile.open(sdist) as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            if not member.isfile() or not path.is_relative_to(GIT_FOLDER):
                continue
            inner = path.relative_to(GIT_FOLDER)
            content = archive.extractfile(member)
            if content is None or ".." in inner.parts or inner.parts[0] not in {"objects", "shallow"}:
                continue
            target = repository / inner
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                shutil.copyfileobj(content, file)
