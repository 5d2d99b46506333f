"""The service that computes: llama-server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from settings.section import OTHER_ACCOUNTS, Section, UserName, setting


class ServiceSettings(Section, title="Service"):
    """llama-server: its accounts, its context, and what it may take of memory and CPU."""

    service_user: UserName = setting(
        "local-llm",
        "User of llama-server; created as a system user if it does not exist. One that does is for nothing else: no "
        "login shell, no other groups, no other processes.",
        allowed="a user or group name in lower case that is nobody else's; `nobody`",
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

    @property
    def reusable_prompts_mib(self) -> int:
        """RAM for prompts seen before: none where they are not shared."""
        return self.prompt_cache_mib if self.share_prompt_cache else 0

    def problems(self) -> Iterator[str]:
        for name in ("service_user", "service_group"):
            if (value := getattr(self, name)) in ("root", *OTHER_ACCOUNTS):
                yield f"{name} = {value!r}: allowed: an account that has no other task, such as 'local-llm'"
        limit = f"memory_max_mib ({self.memory_max_mib})"
        if self.memory_goal_mib > self.memory_max_mib:
            yield f"memory_goal_mib = {self.memory_goal_mib}: allowed: up to {limit}"
        if self.prompt_cache_mib >= self.memory_max_mib:
            yield f"prompt_cache_mib = {self.prompt_cache_mib}: allowed: less than {limit}"
