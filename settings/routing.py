"""Routing between host and cloud."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import StringConstraints

from settings.section import Section, in_words, setting

FieldValue = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")]
FieldValues = Annotated[tuple[FieldValue, ...], in_words("a list of words of letters, digits, dots, dashes")]


class RoutingSettings(Section, title="Routing"):
    """Which requests go to the host first, and which to the cloud, where there is one."""

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
    route_low_efforts: FieldValues = setting(
        ("none", "minimal", "low"),
        "Values of `reasoning_effort` (or `reasoning.effort`, `output_config.effort`) that ask for little: with any "
        "other, a request goes to the cloud first.",
    )
    route_priority_tiers: FieldValues = setting(("priority",), "Values of `service_tier` that go to the cloud first.")
    route_utility_tasks: FieldValues = setting(
        ("utility",), "Values of the header `X-LLM-Task` that go to the host first."
    )
    drill_weekly: bool = setting(
        True, "Every week, take the cloud and then the host out for one request each and see that the other answers."
    )

    def problems(self) -> Iterator[str]:
        if self.route_short_prompt_tokens > self.route_long_prompt_tokens + 1:
            limit = f"route_long_prompt_tokens ({self.route_long_prompt_tokens}) + 1"
            yield f"route_short_prompt_tokens = {self.route_short_prompt_tokens}: allowed: up to {limit}"
