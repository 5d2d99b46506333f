"""OpenClaw: providers for its configuration, and the wiring of an installed one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pyinfra import host
from pyinfra.api import deploy

from checks.contract import paths
from facts.base import read
from facts.openclaw import Installation, InstallationState, Wiring
from operations import files, openclaw
from operations.files import ManagedFile
from operations.openclaw import Wanted, Where, value_at
from settings import Settings
from tasks.planning import Finding, Status
from tasks.rendering import rendered

DIRECTORY = f"{paths.CONFIGURATION}/openclaw"
PATCH = f"{DIRECTORY}/provider.json"
SCRIPT = f"{DIRECTORY}/apply.sh"
SLIM_DIRECTORY = f"{paths.ROOT}/openclaw/slim"

PROVIDER = "local-llm"
ROUTER = "local-llm-router"
"""Two, because OpenClaw lets a whole provider rest after some errors: a cloud's must not hide the local model."""
SLIM_PLUGIN = "local-llm-slim"
LLM_TASK = ("plugins", "entries", "llm-task", "enabled")
SLIM = ("plugins", "entries", SLIM_PLUGIN, "enabled")

LOCAL_ANSWER_TOKENS = 1_024
AGENT_CONTEXT_TOKENS = 4_000
"""OpenClaw refuses agent turns of models with a smaller context."""
MARGIN_SECONDS = 30


def model_reference(settings: Settings) -> str:
    """The local model's name in OpenClaw."""
    return f"{PROVIDER}/{settings.selected_model.name}"


def local_provider(settings: Settings) -> dict[str, Any]:
    """The local model alone: what is asked of it never leaves the host."""
    model = settings.selected_model.name
    return {
        "baseUrl": f"http://127.0.0.1:{settings.api_port}/v1",
        "api": "openai-completions",
        "timeoutSeconds": local_seconds(settings),
        "models": [
            {
                "id": model,
                "name": f"{model} (on this host)",
                "reasoning": False,
                "input": ["text"],
                "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0},
                "contextWindow": settings.context_tokens,
                "maxTokens": min(LOCAL_ANSWER_TOKENS, settings.max_output_tokens, settings.context_tokens // 4),
                "compat": {
                    # Without tools OpenClaw fails turns that any allowlist of tools concerns.
                    "supportsTools": True,
                    "toolSchemaProfile": "llamacpp",
                    "supportsDeveloperRole": False,
                    "supportsStore": False,
                    "supportsReasoningEffort": False,
                    "supportsUsageInStreaming": True,
                    "maxTokensField": "max_tokens",
                },
            }
        ],
    }


def router_provider(settings: Settings) -> dict[str, Any]:
    """The cloud's models through the gateway, which routes each request, adds the key, and answers in an outage."""
    return {
        "baseUrl": f"http://127.0.0.1:{settings.api_port}/v1",
        "api": {"openai": "openai-completions", "anthropic": "anthropic-messages"}[settings.cloud_api],
        "timeoutSeconds": settings.cloud_silence_seconds + local_seconds(settings),
        "models": [
            {
                "id": model,
                "name": f"{model} (routed)",
                "reasoning": False,
                "input": ["text"],
                "contextWindow": settings.openclaw_cloud_context_tokens,
                "maxTokens": settings.openclaw_cloud_max_tokens,
            }
            for model in settings.cloud_models
        ],
    }


def local_seconds(settings: Settings) -> int:
    """How long an answer of the local model may take: waiting for a slot, then reading and writing."""
    return settings.queue_timeout_seconds + settings.request_timeout_seconds + MARGIN_SECONDS


def patch(settings: Settings, found: Mapping[str, Any]) -> dict[str, Any]:
    """What OpenClaw's configuration is to hold: objects, which merge with what is there, and lists in our own only.

    + found: the user's configuration, as far as it decides: whether `llm-task` is enabled, and our plugin
    """
    reference = model_reference(settings)
    providers = {PROVIDER: local_provider(settings)}
    defaults: dict[str, Any] = {}
    plugins: dict[str, Any] = {}
    if settings.cloud_url is not None:
        providers[ROUTER] = router_provider(settings)
    if settings.openclaw_primary:
        defaults["model"] = {"primary": f"{ROUTER}/{settings.cloud_models[0]}"}
    if settings.openclaw_utility:
        defaults["utilityModel"] = reference
        # For a plugin that is not enabled, OpenClaw would warn of its configuration at every command.
        if value_at(found, LLM_TASK) is True:
            plugins["llm-task"] = {
                "llm": {"allowModelOverride": True},
                "config": {"defaultProvider": PROVIDER, "defaultModel": settings.selected_model.name},
            }
    if settings.openclaw_slim:
        plugins[SLIM_PLUGIN] = {"enabled": True, "hooks": {"allowConversationAccess": True}}
    elif value_at(found, SLIM) is True:
        plugins[SLIM_PLUGIN] = {"enabled": False}
    return {
        "models": {"providers": providers},
        **({"agents": {"defaults": defaults}} if defaults else {}),
        **({"plugins": {"entries": plugins}} if plugins else {}),
    }


def fallback(settings: Settings) -> str | None:
    """What ends OpenClaw's chain of fallbacks; nothing where OpenClaw would refuse the model's context."""
    wanted = settings.openclaw_fallback and settings.context_tokens >= AGENT_CONTEXT_TOKENS
    return model_reference(settings) if wanted else None


def configuration_files(settings: Settings, patch: Mapping[str, Any]) -> list[ManagedFile]:
    """The patch, and the script that applies it as the user who runs it."""
    return [
        ManagedFile(PATCH, json.dumps(patch, indent=2) + "\n"),
        rendered(
            SCRIPT,
            directory=DIRECTORY,
            model=model_reference(settings),
            fallback=fallback(settings) is not None,
            slim=settings.openclaw_slim,
            slim_plugin=SLIM_PLUGIN,
            slim_directory=SLIM_DIRECTORY,
            saved_suffix=openclaw.SAVED_SUFFIX,
        ),
    ]


def plugin_files(settings: Settings) -> list[ManagedFile]:
    """The plugin that makes local turns short."""
    if not settings.openclaw_slim:
        return []
    return [
        rendered(f"{SLIM_DIRECTORY}/{name}", provider=PROVIDER, slim_plugin=SLIM_PLUGIN)
        for name in ("package.json", "openclaw.plugin.json", "index.js")
    ]


def where(settings: Settings) -> Where | None:
    """Whose OpenClaw is wired; None where that is left to a person."""
    if settings.openclaw_user is None:
        return None
    return Where(
        user=settings.openclaw_user,
        state_directory=settings.openclaw_state_directory or "",
        command=settings.openclaw_command or "",
        node=settings.openclaw_node or "",
    )


def findings(settings: Settings) -> Iterator[Finding]:
    """Preflight: whether there is an OpenClaw that can be wired. Nothing where none is to be."""
    if whose := where(settings):
        yield finding(whose, _installation(whose))


def finding(whose: Where, installation: InstallationState) -> Finding:
    """FAIL for what is wrong, WARN for an OpenClaw that is still to come: what wires it can be left on the host."""
    remedies = list(openclaw.problems(whose, installation))
    if installation.is_absent:
        remedies.append(f"Then deploy again; what wires it is left in {DIRECTORY}.")
    found = f"{installation.version or 'unknown'}, Node.js {installation.node_version or 'unknown'}"
    return Finding(
        "openclaw",
        Status.WARN if installation.is_absent else Status.FAIL if remedies else Status.PASS,
        found if installation.command else "nothing",
        f"an installed OpenClaw of {whose.user}",
        "\n".join(remedies),
    )


def by_hand(whose: Where | None) -> str:
    """The command that wires OpenClaw, for its user to run."""
    told = {"OPENCLAW_STATE_DIR": whose.state_directory, "OPENCLAW": whose.command} if whose else {}
    return " ".join([*(f"{name}={value}" for name, value in told.items() if value), "sh", SCRIPT])


def _installation(whose: Where) -> InstallationState:
    return read(Installation, user=whose.user, command=whose.command, node=whose.node)


def _found(whose: Where, keys: Sequence[Sequence[str]]) -> dict[str, Any]:
    installation = _installation(whose)
    if list(openclaw.problems(whose, installation)):
        return {}
    return read(
        Wiring,
        user=whose.user,
        file=openclaw.configuration_file(whose, installation),
        keys=tuple(keys),
        environment=openclaw.environment(whose, installation),
    )


def uses(found: Mapping[str, Any]) -> list[str]:
    """What in a user's configuration goes to our models or loads our plugin, by its keys."""
    defaults = value_at(found, ("agents", "defaults")) or {}
    model = defaults.get("model")
    primary = model.get("primary") if isinstance(model, Mapping) else model
    names = {
        "agents.defaults.model": [primary, *openclaw.fallbacks(found)],
        "agents.defaults.utilityModel": [defaults.get("utilityModel")],
    }
    ours = (f"{PROVIDER}/", f"{ROUTER}/")
    used = [key for key, values in names.items() if any(str(value).startswith(ours) for value in values)]
    plugins = value_at(found, ("plugins", "load", "paths")) or []
    return used + (["plugins.load.paths"] if SLIM_DIRECTORY in plugins else [])


def uninstall_findings(settings: Settings) -> Iterator[Finding]:
    """Whether an OpenClaw would be left with a model or a plugin that is gone; nothing where no user is named."""
    if (whose := where(settings)) is None:
        return
    used = uses(_found(whose, openclaw.KEYS))
    yield Finding(
        "openclaw",
        Status.FAIL if used else Status.PASS,
        ", ".join(used) or "nothing",
        f"nothing in {whose.user}'s OpenClaw that uses local-llm",
        'its own CLI undoes the wiring: docs/OPENCLAW.md, "Undoing it"' if used else "",
    )


@deploy("OpenClaw")
def wire(settings: Settings) -> None:
    """Leave the providers and a script that applies them on the host; apply them where a named user has OpenClaw."""
    whose = where(settings)
    wanted = patch(settings, {} if whose is None else _found(whose, (LLM_TASK, SLIM)))
    files.managed(
        name="Write what OpenClaw needs",
        files=[*configuration_files(settings, wanted), *plugin_files(settings)],
    )
    if whose is None or _installation(whose).is_absent:
        host.log(f"What wires OpenClaw is left in {DIRECTORY}. Run as its user: {by_hand(whose)}")
        return
    openclaw.wired(
        name=f"Wire the OpenClaw of {whose.user}",
        where=whose,
        wanted=Wanted(wanted, fallback(settings), SLIM_DIRECTORY if settings.openclaw_slim else None),
        script=SCRIPT,
    )
