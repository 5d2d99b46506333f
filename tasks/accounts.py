"""Who runs what, and the directories that the deploy owns."""

from __future__ import annotations

from pyinfra.api import deploy

from checks.contract import paths
from operations import layout
from operations.jobs import LOG_DIRECTORY
from operations.layout import Directory, SystemUser
from settings import Settings

RECORD = f"{paths.STATE}/accounts"
"""Which users and groups a deploy made."""


def users(settings: Settings) -> list[SystemUser]:
    """One account each for the model, the gateway and the build."""
    return [
        SystemUser(settings.service_user, settings.service_group, "Local LLM"),
        SystemUser(paths.GATEWAY_USER, paths.GATEWAY_USER, "Local LLM gateway"),
        SystemUser(paths.BUILD_USER, paths.BUILD_USER, "Local LLM downloads and builds"),
    ]


@deploy("Accounts and directories")
def prepare(settings: Settings) -> None:
    """Make the accounts, of which none can log in or write what another runs, and the directories."""
    layout.system_users(
        name="Create system users",
        users=users(settings),
        record=RECORD,
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


@deploy("Accounts")
def remove(settings: Settings) -> None:
    """Remove the accounts that a deploy made."""
    layout.accounts_removed(
        name="Remove the system users that a deploy made",
        descriptions=[user.description for user in users(settings)],
        record=RECORD,
    )
