"""Ask the local LLM one question and print the answer as it comes."""

from __future__ import annotations

import time
from collections.abc import Iterator

import requests

from checks import api, probe

# The queue in front of the model may hold another request or two.
_SILENCE_SECONDS = 300.0
_TOTAL_SECONDS = 1800.0


class AskError(Exception):
    """No answer; the message is one line for a person, with the command that helps."""


class Answer:
    """The pieces of an answer; `cut` tells afterwards whether it hit the limit of tokens."""

    def __init__(self, url: str, question: str, model: str, max_tokens: int) -> None:
        self.cut = False
        self._url = url
        self._body = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": max_tokens,
            "stream": True,
        }

    def __iter__(self) -> Iterator[str]:
        """Raises AskError."""
        with api.new_session() as session:
            try:
                response = api.chat(session, self._url, self._body, _SILENCE_SECONDS)
            except api.ApiError as error:
                raise AskError(_explain(self._url, error, _retry_after(error))) from None
            try:
                for piece, reason in api.events(response, time.perf_counter() + _TOTAL_SECONDS):
                    self.cut = self.cut or reason == "length"
                    if piece:
                        yield piece
            except api.ApiError as error:
                raise AskError(
                    f"The answer broke off: {error}. Why: sudo journalctl -u local-llm -u local-llm-gateway -n 50"
                ) from None
            except requests.RequestException as error:
                raise AskError(f"The answer broke off: {error}.") from None


def _retry_after(error: api.ApiError) -> str:
    return f"in {error.retry_after_seconds} s" if error.retry_after_seconds else "in a moment"


def _explain(url: str, error: api.ApiError, again: str) -> str:
    if error.status_code is None:
        return (
            f"The local LLM does not answer at {url} ({error}). See what is down: local-llm status; "
            "start it: sudo systemctl start local-llm local-llm-gateway"
        )
    if error.status_code == 503:
        return _explain_unavailable(url, error, again)
    if error.status_code == 413:
        return "The question is longer than the gateway accepts (HTTP status 413). Ask with less text."
    if error.status_code == 400 and "context" in str(error):
        return f"The question does not fit into the model's context ({error}). Ask with less text."
    if error.status_code == 429:
        return f"Too many requests at once (HTTP status 429). Try again {again}."
    if error.status_code in (502, 504):
        return (
            f"The gateway got no answer from the model in time ({error}). Try again {again}; "
            "if it stays: local-llm status"
        )
    return f"The local LLM refused the question ({error}). More: sudo journalctl -u local-llm -n 20"


def _explain_unavailable(url: str, error: api.ApiError, again: str) -> str:
    """503 has three causes, and /health tells them apart."""
    health = probe.over_tcp(url)
    if health.ok:
        return f"The local LLM is busy ({error}). Try again {again}."
    if health.state == "loading":
        return "The model is still being loaded (HTTP status 503). Try again in a few seconds."
    return (
        "The gateway answers, but the model behind it does not (HTTP status 503). See why: local-llm status; "
        "restart it: sudo systemctl restart local-llm"
    )
