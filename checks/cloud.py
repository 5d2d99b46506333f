"""The cloud provider: is it up, and if not, why and what helps, from what the gateway's own checks of it found."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from checks import gateway
from checks.result import Result, Status

if TYPE_CHECKING:
    from checks.contract.config import Cloud, Config
    from checks.host import Host

_HANDSHAKE_SECONDS = 5.0
_KEY_REFUSED = ("401", "403")
_WAIT = "The gateway asks it again every few seconds; until then the local model answers what fits"


@dataclass(frozen=True)
class Diagnosis:
    """The cloud's state in words; `remedy` is empty while it is up."""

    status: Status
    text: str
    remedy: str = ""


def reachable(config: Config, host: Host) -> Iterator[Result]:
    """The cloud answers the gateway's checks. Its outage is a WARN; a key or certificate that it cannot use lasts."""
    if config.cloud is None:
        return
    found = diagnose(config, config.cloud, gateway.server(config, host, gateway.CLOUD))
    yield Result("cloud", found.status, found.text, "up", found.remedy)


def diagnose(config: Config, cloud: Cloud, server: gateway.Server) -> Diagnosis:
    """Why the gateway sends the cloud nothing."""
    if server.up:
        return Diagnosis(Status.PASS, "up")
    if server.by_hand:
        return Diagnosis(
            Status.WARN,
            f"taken out by hand ({server.status})",
            f"Somebody took it out over the admin socket. Bring it back: sudo systemctl reload {config.gateway_unit}",
        )
    name = urlsplit(cloud.url).hostname or ""
    if server.status.startswith("MAINT"):
        return Diagnosis(
            Status.WARN,
            f"down: the name {name} does not resolve",
            f"See for yourself: getent hosts {name}; which servers are asked: cat /etc/resolv.conf. {_WAIT}.",
        )
    if server.check == "L7STS":
        return _refused(cloud, server)
    if server.check == "L6RSP":
        return _handshake(cloud, server)
    # HAProxy tells a refused connection to a TLS server as a handshake that was refused.
    detail = server.detail.removeprefix("SSL handshake failure (").removesuffix(")")
    words = {
        "L4CON": "no connection",
        "L4TOUT": "no connection in time",
        "L6TOUT": "the TLS handshake takes too long",
        "L7TOUT": "no answer in time",
        "L7RSP": "its answer is no HTTP",
        "HANA": "requests to it failed one after another",
    }
    return Diagnosis(Status.WARN, "down: " + _with(words.get(server.check, server.check), detail), _look(cloud))


def _refused(cloud: Cloud, server: gateway.Server) -> Diagnosis:
    status = _with(f"HTTP status {server.code}", server.detail)
    if server.code in _KEY_REFUSED:
        return Diagnosis(
            Status.FAIL,
            f"down: it refuses the key: {status}",
            "Put a new key into cloud_key_file, or into the environment variable LOCAL_LLM_CLOUD_KEY, and deploy. "
            "Until then only the local model answers.",
        )
    words = {"402": "it wants to be paid", "429": "its limit of requests is reached"}
    return Diagnosis(Status.WARN, f"down: {words.get(server.code, 'it fails')}: {status}", _look(cloud))


def _handshake(cloud: Cloud, server: gateway.Server) -> Diagnosis:
    """HAProxy tells a certificate that is not trusted from any other broken handshake only by name; OpenSSL does."""
    reason = _certificate_problem(cloud)
    if reason is None and "certificate" in server.detail:
        reason = server.detail
    if reason is None:
        return Diagnosis(Status.WARN, "down: " + _with("the TLS handshake fails", server.detail), _look(cloud))
    return Diagnosis(
        Status.FAIL,
        f"down: its certificate is not trusted: {reason}",
        "Something stands between, cloud_url names the wrong host, or this machine's clock or list of authorities is "
        f"old. See: date; curl -v {cloud.url}; newer authorities: sudo apt-get install --only-upgrade ca-certificates",
    )


def _certificate_problem(cloud: Cloud) -> str | None:
    """What OpenSSL says of the certificate with this machine's authorities; None where that is not the problem."""
    parts = urlsplit(cloud.url)
    name = parts.hostname or ""
    try:
        with (
            socket.create_connection((name, parts.port or 443), timeout=_HANDSHAKE_SECONDS) as connection,
            ssl.create_default_context().wrap_socket(connection, server_hostname=name),
        ):
            return None
    except ssl.SSLCertVerificationError as error:
        return str(error.verify_message).rstrip(".")
    except OSError:
        return None


def _look(cloud: Cloud) -> str:
    return f"See for yourself: curl -sSv -o /dev/null {cloud.url}. {_WAIT}."


def _with(words: str, detail: str) -> str:
    return f"{words} ({detail})" if detail else words
