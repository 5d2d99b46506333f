"""Who runs what, and the directories that the deploy owns."""

from __future__ import annotations

from pyinfra.api import deploy

from operations import layout
from operations.jobs import LOG_DIRECTORY
from operations.layout import Directory, SystemUser
from settings import Settings
from tasks import paths


@deploy("Accounts and directories")
def prepare(settings: Settings) -> None:
    """One account each for the model, the gateway and the build; none can log in or write what another runs."""
    layout.system_users(
        name="Create system users",
        users=[
            SystemUser(settings.service_user, settings.service_group, "Local LLM"),
            SystemUser(paths.GATEWAY_USER, paths.GATEWAY_USER, "Local LLM gateway"),
            SystemUser(paths.BUILD_USER, paths.BUILD_USER, "Local LLM downloads and builds"),
        ],
    )
    build = paths.BUILD_USER
    layout.directories(
        name="Create directories",
        directories=[
            Directory(paths.ROOT),
            Directory(f"{paths.ROOT}/releases"),
            Directory(paths.MODELS),
            Directory(f"{paths.MODELS}/incoming", "0750", build, build),
            Directory(paths.CONFIGURATION),
            Directory(paths.SECRETS, "0700"),
            Directory(paths.STATE, "0750"),
            Directory(paths.SCRATCH),
            Directory(LOG_DIRECTORY),
        ],
    )
