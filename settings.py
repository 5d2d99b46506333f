"""Every setting of a deploy, once: type, default, bounds, unit and reason.

`Settings` is built once per host, from the inventory and group_data, before anything runs; nothing reads
`host.data` after that. docs/SETTINGS.md is generated from this file (`make docs`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator


@dataclass(frozen=True)
class Model:
    """A GGUF file that can be served.

    `kv_bytes_per_token` is what one token of context costs in an f16 KV cache: 2 (keys and values) × layers ×
    KV heads × head size × 2 bytes, from the model's own configuration.
    """

    name: str
    url: str
    sha256: str
    size_bytes: int
    kv_bytes_per_token: int
    licence: str


def _hugging_face(repository: str, revision: str, file: str) -> str:
    return f"https://huggingface.co/{repository}/resolve/{revision}/{file}"


CATALOGUE: dict[str, Model] = {
    model.name: model
    for model in (
        Model(
            name="qwen2.5-1.5b-instruct",
            url=_hugging_face(
                "Qwen/Qwen2.5-1.5B-Instruct-GGUF",
                "91cad51170dc346986eccefdc2dd33a9da36ead9",
                "qwen2.5-1.5b-instruct-q4_k_m.gguf",
            ),
            sha256="6a1a2eb6d15622bf3c96857206351ba97e1af16c30d7a74ee38970e434e9407e",
            size_bytes=1_117_320_736,
            kv_bytes_per_token=2 * 28 * 2 * 128 * 2,
            licence="Apache-2.0",
        ),
        Model(
            name="qwen2.5-3b-instruct",
            url=_hugging_face(
                "Qwen/Qwen2.5-3B-Instruct-GGUF",
                "7dabda4d13d513e3e842b20f0d435c732f172cbe",
                "qwen2.5-3b-instruct-q4_k_m.gguf",
            ),
            sha256="626b4a6678b86442240e33df819e00132d3ba7dddfe1cdc4fbb18e0a9615c62d",
            size_bytes=2_104_932_768,
            kv_bytes_per_token=2 * 36 * 2 * 128 * 2,
            licence="Qwen Research (non-commercial use only)",
        ),
    )
}

CUSTOM = "custom"

Port = Annotated[int, Field(ge=1024, le=65535)]
USER_NAME = "a user or group name in lower case"
UserName = Annotated[str, StringConstraints(pattern=r"^[a-z_][a-z0-9_-]{0,30}$")]
OTHER_ACCOUNTS = ("local-llm-gateway", "local-llm-build")
"""Accounts of a deploy's own that have other tasks than llama-server."""
FirewallPort = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9]{1,5}(:[0-9]{1,5})?/(tcp|udp)$"),
]
"""A port or range with its protocol, as UFW writes it: `443/tcp`, `60000:61000/udp`."""
ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}$")]
FieldValue = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")]
_FIELD_VALUES = "a list of words of letters, digits, dots, dashes"
_HOST = r"([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,63}"
"""A name, not an address: certificates are checked by name."""


def setting(default: Any, why: str, *, unit: str = "", allowed: str = "", **bounds: Any) -> Any:
    """A field with its reason, unit and, where its type does not say it, what is allowed in words."""
    return Field(default, description=why, json_schema_extra={"unit": unit, "allowed": allowed}, **bounds)


class Settings(BaseModel):
    """What one host is to become. Immutable and complete."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    # Source and build
    llama_cpp_repository: str = setting(
        "https://github.com/ggml-org/llama.cpp",
        "Where llama.cpp's source is fetched from, by commit.",
        allowed="the https:// address of a git repository, without user or password",
        pattern=r"^(https?|git)://[^\s'\"]+$",
    )
    llama_cpp_commit: str = setting(
        "0c1e57098bba43ac29e6e3b677cdceebdd22334f",
        "The commit that is built; git proves that the content is the commit's. "
        "The default is what every figure in docs/ was measured on.",
        allowed="a full commit hash, 40 hexadecimal digits",
        pattern=r"^[0-9a-f]{40}$",
    )
    build_native: bool = setting(
        True,
        "Compile for this host's own CPU (`-march=native`). Turn off where a VPS may move between CPU types.",
    )
    build_jobs: int | None = setting(
        None, "Compiler processes at once; unset: one a core, as far as free memory allows.", ge=1, le=64
    )
    keep_releases: int = setting(
        2,
        "Builds kept besides the current one, for going back without compiling.",
        unit="releases",
        ge=0,
        le=20,
    )

    # Model
    model: str = setting(
        "qwen2.5-1.5b-instruct",
        f"A model of the catalogue, or `{CUSTOM}` with the four below.",
        allowed=", ".join([*CATALOGUE, CUSTOM]),
    )
    model_name: str | None = setting(
        None,
        f"With `{CUSTOM}`: the name the API serves it under.",
        allowed="up to 64 lower-case letters, digits, dots, dashes",
        pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$",
    )
    model_url: str | None = setting(
        None,
        f"With `{CUSTOM}`: the address of a GGUF file.",
        allowed="an https:// address, without user or password",
        pattern=r"^https?://[^\s'\"]+$",
    )
    model_sha256: str | None = setting(
        None,
        f"With `{CUSTOM}`: the file's SHA-256, in hexadecimal.",
        allowed="64 hexadecimal digits",
        pattern=r"^[0-9a-f]{64}$",
    )
    model_size_bytes: int | None = setting(
        None, f"With `{CUSTOM}`: the file's exact size.", unit="bytes", ge=24, le=64 * 1024**3
    )
    model_kv_bytes_per_token: int = setting(
        32_768,
        f"With `{CUSTOM}`: KV cache per token of context at f16, for the memory estimate "
        "(2 × layers × KV heads × head size × 2).",
        unit="bytes",
        ge=0,
        le=4 * 1024**2,
    )
    keep_models: int = setting(
        1,
        "Model files kept besides the current one, for going back without a download.",
        unit="files",
        ge=0,
        le=20,
    )
    download_attempts: int = setting(
        8, "How often a broken or stalled download is resumed before the deploy fails.", ge=1, le=100
    )
    download_stall_seconds: int = setting(
        30, "A download below 1 KiB/s for this long is dropped and resumed.", unit="s", ge=2, le=600
    )
    allow_insecure_downloads: bool = setting(
        False,
        "Allow `http://` and `git://` addresses: for a mirror in your own network, never for the internet.",
    )

    # Access
    allow_sudo_password: bool = setting(
        False,
        "Deploy also where sudo asks for a password, which pyinfra puts in command lines that every user can "
        "read. Safe are to log in as root by a key, and sudo without a password for the time of the deploy.",
    )

    # Service
    service_user: UserName = setting(
        "local-llm",
        "User of llama-server; created as a system user if it does not exist. One that does is for nothing else: no "
        "login shell, no other groups, no other processes.",
        allowed=f"{USER_NAME} that is nobody else's; `nobody`",
    )
    service_group: UserName = setting(
        "local-llm",
        "Group of llama-server; its members reach the socket. The gateway joins it.",
        allowed="a new group, the user's own, or `nogroup`",
    )
    context_tokens: int = setting(
        16_384,
        "Context length of a request. OpenClaw refuses agent models below 4,000; 2,048 serves utility requests only.",
        unit="tokens",
        ge=512,
        le=131_072,
    )
    kv_cache_type: Literal["f16", "q8_0"] = setting(
        "f16",
        "Precision of the KV cache. `q8_0` halves it (0.22 GB less at 16,384 tokens of the 1.5B model).",
    )
    repack_weights: bool = setting(
        False,
        "Rewrite weights for the CPU at start. On AVX2 it cost 0.6 GB and made prompts 1.3 times slower: off.",
    )
    parallel: int = setting(
        1,
        "Requests computed at once, each with a context of its own. On 2 cores one slot answers sooner; the gateway "
        "queues.",
        ge=1,
        le=8,
    )
    threads: int | None = setting(
        None, "Compute threads; unset: one a core, as many as `cpu_quota_percent` pays for.", ge=1, le=256
    )
    max_output_tokens: int = setting(
        2_048, "Length of an answer when the request sets none.", unit="tokens", ge=1, le=131_072
    )
    prompt_cache_mib: int = setting(
        16,
        "RAM for prompts seen before, beside the last one: 28 KiB a token of the 1.5B model, so two utility prompts of "
        "300 tokens. llama-server's own default, 8192, outgrows the limit.",
        unit="MiB",
        ge=0,
        le=16_384,
    )
    share_prompt_cache: bool = setting(
        True,
        "Let a request reuse what the model has read for an earlier one. Off on a host with several users: by what is "
        "reused, one could guess the prompts of another. Then every prompt is read anew, and `prompt_cache_mib` counts "
        "as 0.",
    )
    memory_max_mib: int = setting(
        3_072, "Hard memory limit of llama-server; above it only llama-server is killed.",
        unit="MiB", ge=64, le=1_048_576,
    )  # fmt: skip
    memory_goal_mib: int = setting(2_560, "Memory above which checks warn.", unit="MiB", ge=32, le=1_048_576)
    cpu_quota_percent: int = setting(200, "CPU limit of llama-server: 100 is one core.", unit="%", ge=10, le=25_600)
    cpu_weight: int = setting(
        400,
        "CPU share against other services when the CPU is short (their default: 100).",
        ge=1,
        le=10_000,
    )

    # Gateway
    api_port: Port = setting(8765, "Port of the API on 127.0.0.1.")
    metrics_port: Port = setting(8766, "Port of the Prometheus endpoint on 127.0.0.1.")
    queue_length: int = setting(
        8,
        "Requests that may wait for a slot; more are answered 503 at once.",
        unit="requests",
        ge=0,
        le=1_000,
    )
    queue_timeout_seconds: int = setting(
        120, "How long a request waits for a slot before it is answered 503.", unit="s", ge=1, le=3_600
    )
    request_timeout_seconds: int = setting(
        600,
        "Silence of llama-server after which a request is answered 504. A full context of 16,384 tokens takes "
        "about 6 minutes to read at 45 tokens/s.",
        unit="s",
        ge=5,
        le=7_200,
    )
    max_body_kib: int = setting(
        1_024,
        "Largest request body. The gateway reads each whole before it lets anything of it go anywhere; larger ones are "
        "answered 413. Pictures for a cloud want more, and more of `gateway_memory_max_mib`.",
        unit="KiB",
        ge=4,
        le=16_384,
    )
    requests_per_minute: int | None = setting(
        None, "Completions a minute; more are answered 429. Unset: no limit.", ge=1, le=100_000
    )
    gateway_memory_max_mib: int = setting(256, "Hard memory limit of the gateway.", unit="MiB", ge=64, le=4_096)

    # Cloud
    cloud_url: str | None = setting(
        None,
        "Base address of a cloud provider, with its version prefix, such as `https://api.example.com/v1`. Unset: "
        "everything is answered on the host.",
        allowed="an https:// address with a host name and without query, or http:// to 127.0.0.1 or localhost",
        pattern=rf"^(https://{_HOST}|http://(127\.0\.0\.1|localhost))(:[0-9]{{1,5}})?(/[A-Za-z0-9._~-]+)*/?$",
    )
    cloud_api: Literal["openai", "anthropic"] = setting(
        "openai",
        "What the provider speaks: `openai` (/chat/completions, /completions, /embeddings) or `anthropic` (/messages). "
        "Requests of the other kind stay on the host.",
    )
    cloud_models: tuple[ModelName, ...] = setting(
        (),
        "The provider's models, by its own names: listed by /v1/models and offered to OpenClaw.",
        allowed="a list of model names, such as gpt-5-mini or openai/gpt-5-mini",
    )
    cloud_model_aliases: tuple[ModelName, ...] = setting(
        (),
        "Further names by which programs may ask the provider for a model, sent as they are and not listed. A request "
        "for any other name never leaves the host.",
        allowed="a list of model names, such as gpt-5-mini or openai/gpt-5-mini",
    )
    cloud_key_file: str | None = setting(
        None,
        "File with the provider's key, on the computer that deploys. Unset: the environment variable "
        "LOCAL_LLM_CLOUD_KEY; where that is unset too, the key that is on the host stays.",
        allowed="the path of a file",
        min_length=1,
    )
    cloud_check_path: str = setting(
        "/models",
        "Path below `cloud_url` that is asked, with the key, whether the provider is up. It should cost nothing.",
        allowed="a path, such as /models",
        pattern=r"^(/[A-Za-z0-9._~-]+)+$",
    )
    cloud_check_seconds: int = setting(
        30, "Time between two such questions while it is up; while it is down, 5 s at most.", unit="s", ge=1, le=3_600
    )
    cloud_first_byte_seconds: int = setting(
        20,
        "Silence of the provider, before the first byte of a streamed answer, after which the request is answered by "
        "the other side.",
        unit="s",
        ge=1,
        le=600,
    )
    cloud_silence_seconds: int = setting(
        300,
        "The same for requests that are not streamed, and silence within a stream after which it ends. HAProxy before "
        "3.0 knows one limit for both: there a stream is held to `cloud_first_byte_seconds` throughout, and one that "
        "asks for reasoning to this.",
        unit="s",
        ge=1,
        le=3_600,
    )
    cloud_requests_per_minute: int | None = setting(
        None,
        "Requests a minute to the provider; above it the host answers what it can. Unset: no limit.",
        ge=1,
        le=100_000,
    )
    fallback_prompt_tokens: int | None = setting(
        None,
        "Estimated prompts from this length on are not taken over by the host when the cloud fails. Unset: what fits "
        "its context. The host reads 45 tokens a second.",
        unit="tokens",
        ge=1,
        le=1_000_000,
    )
    outage_status: Literal[404, 503] = setting(
        404,
        "Answer to a request that is too long for the host while the provider does not serve it. 404 with the code "
        "model_not_found makes OpenClaw try its next model at once; so does 503, sent with a Retry-After of more "
        "than 60 seconds: OpenClaw would wait out a shorter one.",
    )

    # Routing
    bytes_per_token: float = setting(
        4.2,
        "Bytes of a request's body that are counted as one prompt token. Measured: prose, code and conversations "
        "have 3.6 to 4.8, JSON 2.7, logs of numbers 1.6.",
        unit="bytes",
        ge=1,
        le=16,
    )
    route_short_prompt_tokens: int = setting(
        500, "Estimated prompts below this go to the host first.", unit="tokens", ge=0, le=1_000_000
    )
    route_long_prompt_tokens: int = setting(
        2_000, "Estimated prompts above this go to the cloud first.", unit="tokens", ge=0, le=1_000_000
    )
    route_long_answer_tokens: int = setting(
        1_024,
        "Requests whose `max_tokens` or `max_completion_tokens` is above this go to the cloud first: large code "
        "generation.",
        unit="tokens",
        ge=1,
        le=1_000_000,
    )
    route_low_efforts: tuple[FieldValue, ...] = setting(
        ("none", "minimal", "low"),
        "Values of `reasoning_effort` (or `reasoning.effort`, `output_config.effort`) that ask for little: with any "
        "other, a request goes to the cloud first.",
        allowed=_FIELD_VALUES,
    )
    route_priority_tiers: tuple[FieldValue, ...] = setting(
        ("priority",), "Values of `service_tier` that go to the cloud first.", allowed=_FIELD_VALUES
    )
    route_utility_tasks: tuple[FieldValue, ...] = setting(
        ("utility",), "Values of the header `X-LLM-Task` that go to the host first.", allowed=_FIELD_VALUES
    )
    drill_weekly: bool = setting(
        True, "Every week, take the cloud and then the host out for one request each and see that the other answers."
    )

    # OpenClaw
    openclaw_user: UserName | None = setting(
        None,
        "The user whose installed OpenClaw is wired to this gateway by its own CLI; unset, or where none is installed: "
        "only a provider file and the commands are left in /etc/local-llm/openclaw.",
        allowed=USER_NAME,
    )
    openclaw_state_directory: str | None = setting(
        None,
        "Where that OpenClaw keeps its configuration; unset: `.openclaw` in the user's home.",
        allowed="an absolute path",
        pattern=r"^/[A-Za-z0-9._/@+-]*[A-Za-z0-9._@+-]$",
    )
    openclaw_command: str | None = setting(
        None,
        "Path of the `openclaw` command; unset: the one that the user's login shell finds.",
        allowed="an absolute path",
        pattern=r"^/[A-Za-z0-9._/@+-]*[A-Za-z0-9._@+-]$",
    )
    openclaw_node: str | None = setting(
        None,
        "Path of the Node.js that runs it; unset: the one beside `openclaw`, or that the user's login shell finds.",
        allowed="an absolute path",
        pattern=r"^/[A-Za-z0-9._/@+-]*[A-Za-z0-9._@+-]$",
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

    # Firewall
    firewall: bool = setting(True, "Manage UFW: deny incoming, allow outgoing, SSH stays open.")
    firewall_allowed_ports: tuple[FirewallPort, ...] = setting(
        (),
        "Further ports open to the world, such as `443/tcp`. Rules you added by hand stay.",
        allowed="a list of ports with protocol, such as 443/tcp or 60000:61000/udp",
    )

    # Monitoring
    health_interval_minutes: Literal[1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30] = setting(
        5, "Minutes between health checks.", unit="min"
    )
    log_retention_days: int = setting(7, "Days that health logs are kept, compressed.", unit="days", ge=1, le=365)
    response_limit_seconds: float = setting(
        5.0, "Time of a short answer above which checks warn.", unit="s", gt=0, le=600
    )

    health_probe: bool = setting(
        True,
        "Let the health check ask the model for one token, where nobody asked it for anything since the check before.",
    )
    samples_retention_days: int = setting(90, "Days that measurements are kept.", unit="days", ge=7, le=3_650)
    textfile_directory: str = setting(
        "/var/lib/prometheus/node-exporter",
        "Where node_exporter looks for text files, if that directory exists; else they go to "
        "/var/lib/local-llm/metrics.",
        allowed="an absolute path",
        pattern=r"^/[A-Za-z0-9._/@+-]*[A-Za-z0-9._@+-]$",
    )
    utility_goal_percent: float = setting(
        90.0, "Share of utility requests that the host is to answer itself, in the report.", unit="%", gt=0, le=100
    )

    # Alerts and healing (beside memory_goal_mib and response_limit_seconds, which are thresholds too)
    uptime_goal_percent: float = setting(
        99.0, "Share of time, over a day and over a week, below which an alert is raised.", unit="%", gt=0, lt=100
    )
    alert_disk_free_percent: float = setting(
        10.0, "Free disk space below which an alert is raised.", unit="%", gt=0, le=90
    )
    alert_restarts_per_hour: int = setting(
        3, "Crashes of a service within an hour that count as a restart loop.", ge=1, le=1_000
    )
    alert_after_checks: int = setting(
        2,
        "Bad health checks in a row that raise an alert. A dead service, a kill for lack of memory, a restart loop and "
        "a failed drill raise theirs at once.",
        unit="checks",
        ge=1,
        le=100,
    )
    alert_clear_after_checks: int = setting(
        2,
        "Good health checks in a row that clear an alert; twice as many with every time it came back within a day.",
        unit="checks",
        ge=1,
        le=100,
    )
    alert_reminder_hours: int | None = setting(
        None, "Hours after which an open alert is sent again. Unset: one message when it is raised, one when it is "
        "cleared.", unit="h", ge=1, le=720,
    )  # fmt: skip
    alert_webhook_url: str | None = setting(
        None,
        "Where alerts are posted, beside log and journal. An address that is a secret, such as Slack's, belongs into "
        "`alert_webhook_file`.",
        allowed="an https:// address, or http:// to 127.0.0.1 or localhost",
        pattern=r"^(https://[^\s'\"\\@/]+|http://(127\.0\.0\.1|localhost)(:[0-9]{1,5})?)(/[^\s'\"\\]*)?$",
    )
    alert_webhook_file: str | None = setting(
        None,
        "Instead: a file on the computer that deploys, whose first line is the address and whose further lines are "
        "headers to send, such as `Authorization: Bearer …`.",
        allowed="the path of a file",
        min_length=1,
    )
    alert_webhook_format: Literal["json", "ntfy", "slack"] = setting(
        "json",
        "What is posted: a JSON object, a message for ntfy, or what Slack, Mattermost and Discord (/slack) take.",
    )
    alert_command: str | None = setting(
        None,
        "A program on the host, root's own, that is run as root for each alert with the JSON object on its standard "
        "input.",
        allowed="an absolute path",
        pattern=r"^/[A-Za-z0-9._/@+-]*[A-Za-z0-9._@+-]$",
    )
    heal_after_failures: int = setting(
        2,
        "Health checks in a row that a running service leaves unanswered before it is restarted.",
        unit="checks",
        ge=1,
        le=100,
    )
    heal_restarts_per_hour: int = setting(
        3, "Such restarts of a service within an hour at most; 0: never restart.", ge=0, le=60
    )

    # Prometheus
    prometheus: bool = setting(
        False,
        "Run the distribution's Prometheus and node exporter, served by the gateway, beside the model and never at "
        "its cost. Off again: removed, with its data.",
    )
    prometheus_port: Port = setting(9090, "Port of Prometheus in its own network; none of the host.")
    alertmanager_port: Port = setting(9093, "Without effect: no Alertmanager runs. A line that sets it may go.")
    node_exporter_port: Port = setting(9100, "Port of the node exporter in the same network; none of the host.")
    prometheus_scrape_seconds: int = setting(30, "Time between two samples of every metric.", unit="s", ge=5, le=120)
    prometheus_retention_days: int = setting(15, "Days that Prometheus keeps samples.", unit="days", ge=1, le=365)
    prometheus_storage_mib: int = setting(
        512, "Disk that its samples may take; the oldest go first.", unit="MiB", ge=64, le=65_536
    )
    prometheus_memory_max_mib: int = setting(
        272,
        "Hard memory limit of both and the ways to them. Measured with 1,100 series: Prometheus at most 94 MB, "
        "the node exporter 26; a large query takes more.",
        unit="MiB",
        ge=256,
        le=8_192,
    )

    # Host
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

    # Uninstalling
    uninstall_models: bool = setting(
        False, "Whether uninstall.py removes the models as well. Kept, they are there for the next deploy."
    )
    uninstall_logs: bool = setting(False, "Whether uninstall.py removes the logs in /var/log as well.")
    uninstall_history: bool = setting(
        False, "Whether uninstall.py removes the history of measurements, /var/lib/local-llm/samples.db, as well."
    )

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, data: Any) -> Any:
        """group_data and `--data` give lists; a frozen model holds tuples."""
        if not isinstance(data, Mapping):
            return data
        return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}

    @model_validator(mode="after")
    def _is_consistent(self) -> Settings:
        problems = list(_inconsistencies(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def loopback_ports(self) -> dict[str, int]:
        """Ports of the host that the deploy's services listen on, by the setting's name: none is for the network."""
        return {name: getattr(self, name) for name in ("api_port", "metrics_port")}

    @property
    def reusable_prompts_mib(self) -> int:
        """RAM for prompts seen before: none where they are not shared."""
        return self.prompt_cache_mib if self.share_prompt_cache else 0

    @property
    def selected_model(self) -> Model:
        """The model that `model` names, with the custom settings filled in."""
        if self.model != CUSTOM:
            return CATALOGUE[self.model]
        assert self.model_name is not None
        assert self.model_url is not None
        assert self.model_sha256 is not None
        assert self.model_size_bytes is not None
        return Model(
            name=self.model_name,
            url=self.model_url,
            sha256=self.model_sha256,
            size_bytes=self.model_size_bytes,
            kv_bytes_per_token=self.model_kv_bytes_per_token,
            licence="as its publisher says",
        )


def _inconsistencies(settings: Settings) -> Iterable[str]:
    """Problems between settings, each as `name = value: what is allowed`."""
    custom = {name: getattr(settings, name) for name in ("model_name", "model_url", "model_sha256", "model_size_bytes")}
    if settings.model == CUSTOM:
        for name in (name for name, value in custom.items() if value is None):
            yield f'{name} is missing: model = "{CUSTOM}" needs it'
    elif settings.model not in CATALOGUE:
        yield f"model = {settings.model!r}: allowed: {', '.join([*CATALOGUE, CUSTOM])}"
    else:
        for name, value in custom.items():
            if value is not None:
                yield f'{name} = {value!r}: only with model = "{CUSTOM}"'
    for name in ("llama_cpp_repository", "model_url"):
        url = getattr(settings, name) or ""
        if re.match(r"[a-z]+://[^/?#]*@", url):
            # Not shown: it may be a password.
            yield f"{name}: allowed: an address without user and password, which every user of the host could read"
        elif url and not settings.allow_insecure_downloads and not url.startswith("https://"):
            yield f"{name} = {url!r}: allowed: https:// addresses (or allow_insecure_downloads = True)"
    if settings.cloud_url is not None and not settings.cloud_models:
        yield "cloud_models is missing: cloud_url needs at least one of the provider's models"
    if settings.cloud_url is not None and not _has_usable_port(settings.cloud_url):
        yield f"cloud_url = {settings.cloud_url!r}: allowed: ports from 1 to 65535"
    if settings.cloud_url is None:
        for name in ("cloud_models", "cloud_model_aliases", "cloud_key_file"):
            if value := getattr(settings, name):
                yield f"{name} = {value!r}: only with cloud_url"
    own_names = {settings.model_name if settings.model == CUSTOM else settings.model, *CATALOGUE}
    for field in ("cloud_models", "cloud_model_aliases"):
        # Also of a model that the host served before: programs that name it mean to stay on the host.
        for own in [own for own in getattr(settings, field) if own in own_names]:
            yield f"{field} contains {own!r}: that name is a model of the host's own"
    if settings.cloud_silence_seconds < settings.cloud_first_byte_seconds:
        limit = f"cloud_first_byte_seconds ({settings.cloud_first_byte_seconds})"
        yield f"cloud_silence_seconds = {settings.cloud_silence_seconds}: allowed: from {limit} up"
    if settings.route_short_prompt_tokens > settings.route_long_prompt_tokens + 1:
        limit = f"route_long_prompt_tokens ({settings.route_long_prompt_tokens}) + 1"
        yield f"route_short_prompt_tokens = {settings.route_short_prompt_tokens}: allowed: up to {limit}"
    if settings.openclaw_primary and settings.cloud_url is None:
        yield "openclaw_primary = True: only with cloud_url"
    for name in ("service_user", "service_group"):
        if (value := getattr(settings, name)) in ("root", *OTHER_ACCOUNTS):
            yield f"{name} = {value!r}: allowed: an account that has no other task, such as 'local-llm'"
    if settings.openclaw_user in (settings.service_user, *OTHER_ACCOUNTS):
        yield f"openclaw_user = {settings.openclaw_user!r}: allowed: the user that OpenClaw is installed for"
    if settings.openclaw_user is None:
        for name in ("openclaw_state_directory", "openclaw_command", "openclaw_node"):
            if value := getattr(settings, name):
                yield f"{name} = {value!r}: only with openclaw_user"
    ports = dict(settings.loopback_ports)
    if settings.prometheus:
        # In its network the gateway's metrics have the port that they have on the host.
        ports |= {name: getattr(settings, name) for name in ("prometheus_port", "node_exporter_port")}
    for name, number in list(ports.items())[1:]:
        earlier = [other for other in itertools.takewhile(name.__ne__, ports) if ports[other] == number]
        if earlier:
            yield f"{name} = {number}: allowed: a port other than {earlier[0]}"
    if settings.alert_webhook_url is not None and settings.alert_webhook_file is not None:
        yield "alert_webhook_file: only without alert_webhook_url"
    if settings.memory_goal_mib > settings.memory_max_mib:
        limit = f"memory_max_mib ({settings.memory_max_mib})"
        yield f"memory_goal_mib = {settings.memory_goal_mib}: allowed: up to {limit}"
    if settings.prompt_cache_mib >= settings.memory_max_mib:
        yield (
            f"prompt_cache_mib = {settings.prompt_cache_mib}: allowed: less than memory_max_mib "
            f"({settings.memory_max_mib})"
        )
    for port in settings.firewall_allowed_ports:
        numbers = [int(number) for number in re.findall(r"\d+", port)]
        if not all(1 <= number <= 65535 for number in numbers) or numbers != sorted(numbers):
            yield f"firewall_allowed_ports contains {port!r}: allowed: ports from 1 to 65535, ranges ascending"
        elif any(numbers[0] <= own <= numbers[-1] for own in settings.loopback_ports.values()):
            yield f"firewall_allowed_ports contains {port!r}: the API's ports are never opened; use an SSH tunnel"


def _has_usable_port(url: str) -> bool:
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False


def is_connector_data(name: str) -> bool:
    """Whether a host's datum belongs to pyinfra (how to connect, `_sudo` and the like) and not to us."""
    return name.startswith(("_", "ssh_", "docker_", "podman_", "local_"))


def parse(data: Mapping[str, Any]) -> tuple[Settings | None, list[str]]:
    """Build settings from one host's data.

    Returns the settings, or None and every problem as one line each: the setting's name, its value and what is
    allowed.
    """
    own = {name: value for name, value in data.items() if not is_connector_data(name)}
    try:
        return Settings(**own), []
    except ValidationError as error:
        details = error.errors()
    wrong = {str(detail["loc"][0]): _problem(detail) for detail in details if detail["loc"]}
    problems = list(wrong.values())
    # Pydantic compares settings with each other only once each is right by itself; look at the right ones now.
    if wrong and (right := {name: value for name, value in own.items() if name not in wrong}):
        problems += [line for line in parse(right)[1] if not any(name in line for name in wrong)]
    return None, problems or [line for detail in details for line in str(detail["ctx"]["error"]).splitlines()]


def _problem(detail: Any) -> str:
    name, value = str(detail["loc"][0]), detail["input"]
    if detail["type"] == "extra_forbidden":
        close = get_close_matches(name, Settings.model_fields, n=1)
        hint = f"did you mean {close[0]}?" if close else "docs/SETTINGS.md lists them all"
        return f"{name} = {value!r}: no such setting; {hint}"
    return f"{name} = {value!r}: allowed: {allowed_values(name)}"


def allowed_values(name: str) -> str:
    """What a setting accepts, in words: for error messages and for docs/SETTINGS.md."""
    schema = _schema()[name]
    words = schema["allowed"] or " or ".join(_allowed(kind, schema["unit"]) for kind in schema.get("anyOf", [schema]))
    return words if schema.get("default", "") is not None or words.endswith("None") else f"{words} or None"


@cache
def _schema() -> dict[str, Any]:
    properties: dict[str, Any] = Settings.model_json_schema()["properties"]
    return properties


def _allowed(schema: Mapping[str, Any], unit: str) -> str:
    suffix = f" {unit}" if unit else ""
    if "enum" in schema:
        return ", ".join(str(value) for value in schema["enum"]) + suffix
    match schema["type"]:
        case "boolean":
            return "True or False"
        case "null":
            return "None"
        case kind:
            noun = {"integer": "a whole number", "number": "a number"}[kind]
            low = schema["minimum"] if "minimum" in schema else f"above {schema['exclusiveMinimum']}"
            high = schema["maximum"] if "maximum" in schema else f"below {schema['exclusiveMaximum']}"
            return f"{noun} from {low} to {high}{suffix}"


_PAGE = """# Settings

Generated from settings.py by `make docs`; change them in group_data/all.py (every host) or inventory.py (one host).

| setting | default | allowed | why |
|---|---|---|---|
"""


def page() -> str:
    """docs/SETTINGS.md."""
    rows = (
        f"| `{name}` | `{_default(field.default)}` | {allowed_values(name)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    )
    models = (
        f"| `{model.name}` | {model.size_bytes / 1e9:.2f} GB | {model.licence} | `{model.sha256}` |"
        for model in CATALOGUE.values()
    )
    catalogue = ["", "## Models", "", "| model | size | licence | SHA-256 |", "|---|---|---|---|", *models]
    return _PAGE + "\n".join([*rows, *catalogue]) + "\n"


def _default(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    print(page(), end="")
