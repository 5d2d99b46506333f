"""Container images that resemble a fresh VPS: systemd, sshd, a sudo user, and nothing that the deploy has to
install.

They start from a registry's images; where none answers, Debian's from a root file system made by debootstrap.
`provision.sh` then makes each of them the sandbox's image.
"""

import functools
import platform
import shutil
import subprocess
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

from sandbox.common import LABEL, SandboxError, cache_dir, last_lines, only_one, recipe_digest, run, say, stream
from sandbox.engine import ensure_debootstrap

REGISTRY_TIMEOUT_SECONDS = 15
PULL_TIMEOUT_SECONDS = 600
PROVISION_SCRIPT = Path(__file__).with_name("provision.sh")
REPOSITORY = "local-llm-sandbox"
DEBOOTSTRAP = ("debootstrap", "--variant=minbase", "--force-check-gpg")
IMAGE_CHANGES = ('CMD ["/sbin/init"]', "ENV container=docker", f"LABEL {LABEL}=image")


@dataclass(frozen=True)
class Distribution:
    """Where an image's root file system comes from: a registry's image, or debootstrap's suite."""

    name: str
    registry_image: str
    suite: str | None = None


DISTRIBUTIONS = {
    "debian12": Distribution("debian12", registry_image="debian:12", suite="bookworm"),
    "debian13": Distribution("debian13", registry_image="debian:13", suite="trixie"),
    "ubuntu24.04": Distribution("ubuntu24.04", registry_image="ubuntu:24.04"),
}


def default_image() -> str:
    """ubuntu24.04 where a container registry answers, else debian12; says which and why."""
    problem = registry_problem("ubuntu:24.04")
    if problem is None:
        say("  Image: ubuntu24.04.")
        return "ubuntu24.04"
    say(f"  Image: debian12, made with debootstrap, because ubuntu:24.04 cannot be had ({problem}).")
    return "debian12"


def base_image(name: str) -> str:
    """The tag of a ready image for `debian12`, `debian13` or `ubuntu24.04`; makes it if this recipe's image
    is not there yet.

    Raises SandboxError when the name is unknown, or a registry or debootstrap does not deliver.
    """
    distribution = DISTRIBUTIONS.get(name)
    if distribution is None:
        raise SandboxError(f"Unknown image {name!r}. Known: {', '.join(DISTRIBUTIONS)}.")
    tag = image_tag(distribution)
    with only_one("images"):
        if not _image_exists(tag):
            say(f"  Making the image {tag}: a minute or two, needed once (logs: {cache_dir()}).")
            root = _debootstrap_root(distribution) if _is_debootstrapped(distribution) else _registry_root(distribution)
            _provision(root, tag)
    return tag


def image_tag(distribution: Distribution) -> str:
    """Name and hash of the recipe: another recipe is another tag, so no old image is taken for a new one."""
    return _tag(distribution.name, root_tag(distribution), PROVISION_SCRIPT.read_text(), *IMAGE_CHANGES)


def _is_debootstrapped(distribution: Distribution) -> bool:
    """Only where no registry has the image: a person's machine that has Docker needs no further program."""
    return distribution.suite is not None and registry_problem(distribution.registry_image) is not None


def root_tag(distribution: Distribution) -> str:
    """Image that provision.sh runs in: a registry's, or our own made by debootstrap."""
    if not _is_debootstrapped(distribution):
        return distribution.registry_image
    return _tag(f"{distribution.name}-root", str(distribution.suite), *DEBOOTSTRAP)


def _tag(name: str, *recipe: str) -> str:
    return f"{REPOSITORY}:{name}-{recipe_digest(platform.machine(), *recipe)}"


@functools.cache
def registry_problem(image: str) -> str | None:
    """Why an image can be had neither locally nor from a registry; None if it can."""
    if _image_exists(image):
        return None
    try:
        result = run(["docker", "manifest", "inspect", image], timeout_seconds=REGISTRY_TIMEOUT_SECONDS, check=False)
    except SandboxError:
        return f"no registry answered in {REGISTRY_TIMEOUT_SECONDS} s"
    if result.returncode == 0:
        return None
    # Docker's message is a chain of causes; the last is the one to act on.
    return f"no container registry answers: {last_lines(result.stderr, 1).rpartition(': ')[2][:100]}"


def _image_exists(tag: str) -> bool:
    return run(["docker", "image", "inspect", "--format", "{{.Id}}", tag], check=False).returncode == 0


def _registry_root(distribution: Distribution) -> str:
    image = distribution.registry_image
    problem = registry_problem(image)
    if problem is not None:
        raise SandboxError(
            f"{image} cannot be had ({problem}). "
            "As root on Debian or Ubuntu, debian12 and debian13 need no container registry."
        )
    if not _image_exists(image):
        run(["docker", "pull", "--quiet", image], timeout_seconds=PULL_TIMEOUT_SECONDS)
    return image


def _debootstrap_root(distribution: Distribution) -> str:
    """Import a minimal root file system made by debootstrap; its mirror is debootstrap's default."""
    tag = root_tag(distribution)
    if _image_exists(tag):
        return tag
    ensure_debootstrap()
    suite = str(distribution.suite)
    log = cache_dir() / f"debootstrap-{suite}.log"
    with tempfile.TemporaryDirectory(prefix="local-llm-sandbox-") as folder:
        root = Path(folder) / "root"
        stream([*DEBOOTSTRAP, suite, str(root)], log, env=_debootstrap_env(suite, Path(folder)))
        for archive in (root / "var/cache/apt/archives").glob("*.deb"):
            archive.unlink()
        _import(root, tag)
    return tag


def _debootstrap_env(suite: str, folder: Path) -> dict[str, str]:
    """Environment for a suite that this debootstrap is too old to know: sid's script serves later suites as
    well.

    The link is made in a private copy of debootstrap's folder, so the system's stays as it is.
    """
    system = Path("/usr/share/debootstrap")
    if (system / "scripts" / suite).exists():
        return {}
    private = folder / "debootstrap"
    shutil.copytree(system, private, symlinks=True)
    (private / "scripts" / suite).symlink_to("sid")
    return {"DEBOOTSTRAP_DIR": str(private)}


def _import(root: Path, tag: str) -> None:
    with subprocess.Popen(["tar", "-C", str(root), "--numeric-owner", "-c", "."], stdout=subprocess.PIPE) as tar:
        result = subprocess.run(
            ["docker", "import", "--change", f"LABEL {LABEL}=image", "-", tag],
            stdin=tar.stdout,
            capture_output=True,
            text=True,
            check=False,
        )
    if result.returncode != 0 or tar.returncode != 0:
        raise SandboxError(f"`docker import` of the new root file system failed: {last_lines(result.stderr)}")


def _provision(root_image: str, tag: str) -> None:
    """Run provision.sh in a container of the root image and keep the result.

    Needs no image builder, which not every engine has.
    """
    container = f"{REPOSITORY}-provision-{uuid.uuid4().hex[:8]}"
    log = cache_dir() / "provision.log"
    argv = [
        "docker",
        "run",
        "--interactive",
        "--name",
        container,
        "--label",
        f"{LABEL}=provision",
        root_image,
        "sh",
        "-eu",
    ]
    try:
        stream(argv, log, input_text=PROVISION_SCRIPT.read_text())
        changes = [word for change in IMAGE_CHANGES for word in ("--change", change)]
        run(["docker", "commit", *changes, container, tag])
    finally:
        run(["docker", "rm", "--force", container], check=False)
