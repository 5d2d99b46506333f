"""Disks that virtual machines boot from: a bare Debian 13 with the distribution's own kernel, or Ubuntu's cloud image.

Both are kept in the cache, named by what they are made from.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import requests

from sandbox.common import LABEL, SandboxError, cache_dir, file_sha256, only_one, recipe_digest, run, say, stream
from sandbox.engine import install_packages, is_root_on_debian
from sandbox.host import SSH_USER, ssh_key_pair
from sandbox.image import base_image

SIZE = "12G"
DISK_SCRIPT = Path(__file__).with_name("vm_disk.sh")
CLOUD_IMAGES = "https://cloud-images.ubuntu.com/releases/noble/release"
CLOUD_IMAGE = "ubuntu-24.04-server-cloudimg-amd64.img"
CLOUD_TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class Disk:
    """A raw disk that is copied for each machine; `boot` are QEMU's options that make it start."""

    name: str
    file: Path
    host_keys: str
    boot: tuple[str, ...] = ()


def disk(name: str) -> Disk:
    """The disk of that name; made if this recipe's is not there yet. Raises SandboxError when that fails."""
    makers = {"debian13": _debian, "ubuntu24.04": _ubuntu}
    if name not in makers:
        raise SandboxError(f"Unknown disk {name!r}. Known: {', '.join(makers)}.")
    with only_one("disks"):
        return makers[name]()


def _debian() -> Disk:
    """Made in a container of the sandbox's Debian image, so that it takes neither root nor mounts here."""
    tag = base_image("debian13")
    _, public = ssh_key_pair()
    folder = _folder("debian13", tag, DISK_SCRIPT.read_text(), SIZE, public)
    if not folder.exists():
        say("  Making the virtual machine's disk: a minute or two, needed once.")
        with _making(folder) as made:
            options = ["--rm", "--init", "--interactive", "--label", f"{LABEL}=disk", "-v", f"{made}:/out"]
            inner = ["sh", "-eu", "-s", "-", SIZE, f"{os.getuid()}:{os.getgid()}", public]
            stream(
                ["docker", "run", *options, tag, *inner], cache_dir() / "disk.log", input_text=DISK_SCRIPT.read_text()
            )
    kernel = ("-kernel", str(folder / "vmlinuz"), "-initrd", str(folder / "initrd.img"))
    keys = (folder / "host_keys").read_text()
    return Disk("debian13", folder / "disk.img", keys, (*kernel, "-append", "root=/dev/vda rw console=ttyS0"))


def _ubuntu() -> Disk:
    """Ubuntu's own cloud image with its own boot loader, set up by cloud-init as at a provider."""
    _, public = ssh_key_pair()
    checksum = _cloud_checksum()
    folder = _folder("ubuntu24.04", checksum, SIZE, public, _user_data("", "", public))
    if not folder.exists():
        say("  Fetching Ubuntu's cloud image (600 MB), needed once.")
        _ensure_image_tools()
        with _making(folder) as made:
            image = made / "image"
            _download(f"{CLOUD_IMAGES}/{CLOUD_IMAGE}", checksum, image)
            run(["qemu-img", "convert", "-O", "raw", str(image), str(made / "disk.img")])
            run(["qemu-img", "resize", "-f", "raw", str(made / "disk.img"), SIZE])
            image.unlink()
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(made / "host_key")])
            host_key = (made / "host_key").read_text(), (made / "host_key.pub").read_text().strip()
            (made / "user-data").write_text(_user_data(*host_key, public))
            run(["cloud-localds", str(made / "seed.img"), str(made / "user-data")])
    seed = ("-drive", f"file={folder}/seed.img,if=virtio,format=raw,readonly=on")
    return Disk("ubuntu24.04", folder / "disk.img", (folder / "host_key.pub").read_text(), seed)


def _user_data(host_private: str, host_public: str, public: str) -> str:
    """cloud-init's configuration: the deploy's user, root's key for the tests, and a host key that is known here."""
    user = {"name": SSH_USER, "shell": "/bin/bash", "sudo": "ALL=(ALL) NOPASSWD:ALL", "ssh_authorized_keys": [public]}
    return "#cloud-config\n" + json.dumps(
        {
            "users": [user],
            "disable_root": False,
            "ssh_authorized_keys": [public],
            "ssh_keys": {"ed25519_private": host_private, "ed25519_public": host_public},
        }
    )


def _cloud_checksum() -> str:
    with requests.get(f"{CLOUD_IMAGES}/SHA256SUMS", timeout=CLOUD_TIMEOUT_SECONDS) as answer:
        answer.raise_for_status()
        lines = answer.text.splitlines()
    found = [line.split()[0] for line in lines if line.endswith(f"*{CLOUD_IMAGE}")]
    if len(found) != 1:
        raise SandboxError(f"{CLOUD_IMAGES}/SHA256SUMS does not name {CLOUD_IMAGE}.")
    return found[0]


def _download(url: str, sha256: str, file: Path) -> None:
    with requests.get(url, timeout=CLOUD_TIMEOUT_SECONDS, stream=True) as answer, file.open("wb") as output:
        answer.raise_for_status()
        for chunk in answer.iter_content(2**20):
            output.write(chunk)
    if (found := file_sha256(file)) != sha256:
        raise SandboxError(f"{url} is not what its SHA256SUMS says (SHA-256 {found}). Run this again.")


def _ensure_image_tools() -> None:
    packages = {"qemu-img": "qemu-utils", "cloud-localds": "cloud-image-utils"}
    missing = [package for program, package in packages.items() if shutil.which(program) is None]
    if missing and not is_root_on_debian():
        raise SandboxError(f"{' and '.join(missing)} must be installed for Ubuntu's cloud image.")
    if missing:
        install_packages(missing)


def _folder(name: str, *recipe: str) -> Path:
    return cache_dir() / "disks" / f"{name}-{recipe_digest(*recipe)}"


@contextlib.contextmanager
def _making(folder: Path) -> Iterator[Path]:
    """A directory beside `folder`, which becomes `folder` once it is complete."""
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        yield made
        made.rename(folder)
