"""OpenClaw beside the gateway."""

from __future__ import annotations

from collections.abc import Iterator

from settings.section import AbsolutePath, Section, UserName, setting


class OpenClawSettings(Section, title="OpenClaw"):
    """How the OpenClaw that is installed on the host is wired to the gateway."""

    openclaw_user: UserName | None = setting(
        None,
        "The user whose installed OpenClaw is wired to this gateway by its own CLI; unset, or where none is installed: "
        "only a provider file and the commands are left in /etc/local-llm/openclaw.",
    )
    openclaw_state_directory: AbsolutePath | None = setting(
        None,
        "Where that OpenClaw keeps its configuration; unset: `.openclaw` in the user's home.",
    )
    openclaw_command: AbsolutePath | None = setting(
        None,
        "Path of the `openclaw` command; unset: the one that the user's login shell finds.",
    )
    openclaw_node: AbsolutePath | None = setting(
        None,
        "Path of the Node.js that runs it; unset: the one beside `openclaw`, or that the user's login shell finds.",
    )
    openclaw_utility: bool = setting(
        True, "Let the local model do OpenClaw's utility tasks (titles, recaps), and `llm-task` where it is enabled."
    )
    openclaw_slim: bool = setting(
        False,
        "Give OpenClaw a plugin that makes its agent turns short where the local model answers them: no tools, a short "
        "system prompt. Turns of other models are not touched.",
    )
    openclaw_fallback: bool = setting(True, "Append the local model to the end of OpenClaw's own chain of fallbacks.")
    openclaw_primary: bool = setting(
        False,
        "Make the first of `cloud_models`, through the gateway, OpenClaw's primary model; off: the user's stays.",
    )
    openclaw_cloud_context_tokens: int = setting(
        128_000,
        "Context length that OpenClaw is told of the cloud's models.",
        unit="tokens",
        ge=4_000,
        le=10_000_000,
    )
    openclaw_cloud_max_tokens: int = setting(
        8_192,
        "Longest answer that OpenClaw asks the cloud's models for.",
        unit="tokens",
        ge=16,
        le=1_000_000,
    )

    def problems(self) -> Iterator[str]:
        if self.openclaw_user is None:
            for name in ("openclaw_state_directory", "openclaw_command", "openclaw_node"):
                if value := getattr(self, name):
                    yield f"{name} = {value!r}: only with openclaw_user"
