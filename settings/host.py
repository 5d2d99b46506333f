"""The host, for whatever else runs on it."""

from __future__ import annotations

from settings.section import Section, setting


class HostSettings(Section, title="Host"):
    """What a deploy does with the host itself: how it becomes root, swap, and waiting for apt."""

    allow_sudo_password: bool = setting(
        False,
        "Deploy also where sudo asks for a password, which pyinfra puts in command lines that every user can "
        "read. Safe are to log in as root by a key, and sudo without a password for the time of the deploy.",
    )
    swap_file_mib: int = setting(
        0,
        "Size of a swap file, /var/swap/local-llm, so that idle programs give way before one is killed; model and "
        "gateway never swap. 0: none.",
        unit="MiB",
        ge=0,
        le=65_536,
    )
    apt_lock_timeout_seconds: int = setting(
        600, "How long to wait while another process (unattended-upgrades on a new VPS) installs packages.",
        unit="s", ge=0, le=7_200,
    )  # fmt: skip
