"""Requests to the gateway, drawn from a grammar: what programs send, and what is nearly that.

The same number always gives the same request. Nothing here knows what the gateway makes of one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

from sandbox.servers.answers import CLOUD_MODELS
from settings import CATALOGUE

SEED = 20_261_125
PORT = 8765
LOCAL_MODEL = "tiny"
CLOUD_ALIAS = "vendor/large:2026"
TOKEN_HEADER = b"X-Test-Token"

T = TypeVar("T")
Pair = tuple[str, Any]
Header = tuple[bytes, bytes]


@dataclass(frozen=True)
class Written:
    """JSON as it is to be written, whatever it means."""

    text: str


@dataclass(frozen=True)
class Request:
    """A request as it goes over the wire. `pieces` are the chunks of its body, or one piece with its length."""

    method: bytes
    target: bytes
    headers: tuple[Header, ...]
    pieces: tuple[bytes, ...]
    is_chunked: bool
    trailers: tuple[Header, ...] = ()

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    def values(self, name: str) -> list[bytes]:
        """What every header of that name says."""
        return [value for own, value in self.headers if own.lower() == name.encode()]

    def wire(self, *more: Header) -> bytes:
        """All its bytes, with more headers first."""
        framing = (b"Transfer-Encoding", b"chunked") if self.is_chunked else (b"Content-Length", b"%d" % len(self.body))
        head = self.method + b" " + self.target + b" HTTP/1.1\r\n" + _lines((*more, framing, *self.headers)) + b"\r\n"
        if not self.is_chunked:
            return head + self.body
        chunks = (b"%x\r\n%b\r\n" % (len(piece), piece) for piece in self.pieces if piece)
        return head + b"".join(chunks) + b"0\r\n" + _lines(self.trailers) + b"\r\n"


def _lines(headers: Sequence[Header]) -> bytes:
    return b"".join(name + b": " + value + b"\r\n" for name, value in headers)


def drawn(series: str, number: int) -> Request:
    """The request of that number."""
    random = Random(f"{SEED} {series} {number}")
    token = f"{series}-{number}"
    body = _body(random, token)
    is_chunked = random.random() < 0.3
    trailers = ((b"X-LLM-Route", random.choice((b"local", b"cloud"))),) if is_chunked and _chance(random, 0.05) else ()
    host, target = _target(random)
    headers = [(b"Host", host), (TOKEN_HEADER, token.encode()), *_headers(random)]
    method = b"POST" if _chance(random, 0.99) else random.choice((b"GET", b"PUT", b"DELETE", b"post", b"PATCH"))
    pieces = _pieces(random, body) if is_chunked else (body,)
    return Request(method, target, tuple(headers), pieces, is_chunked, trailers)


def _chance(random: Random, share: float) -> bool:
    return random.random() < share


# Words and what becomes of them.

LOOK_ALIKES = {
    "a": "а",
    "c": "с",
    "e": "е",
    "i": "ı",
    "l": "ⅼ",
    "o": "о",
    "r": "г",
    "s": "ѕ",
    "t": "т",
    "y": "у",
    "-": "‐",
}
INVISIBLE = ("\u200b", "\u00ad", "\ufeff", "\u2060", "\0")
BLANKS = (" ", "\t", "\n", "\r", "\u00a0", "\u3000", "  ")


def _any_case(random: Random, word: str) -> str:
    return "".join(random.choice((letter.upper(), letter.lower())) for letter in word)


def _look_alike(random: Random, word: str) -> str:
    at = random.randrange(len(word))
    return word[:at] + LOOK_ALIKES.get(word[at], word[at] + random.choice(INVISIBLE)) + word[at + 1 :]


def _mistyped(random: Random, word: str) -> str:
    at = random.randrange(len(word))
    return word[:at] + random.choice(("", word[at] * 2, random.choice("abz019-_"))) + word[at + 1 :]


def _with_prefix(random: Random, word: str) -> str:
    return random.choice(("openai/", "local-llm/", "local/", "models/", "./", "/", "cloud:", "~")) + word


def _with_suffix(random: Random, word: str) -> str:
    return word + random.choice((":latest", ".gguf", "-2", "@main", "/", ":", "#", " (local)", "\0", "\0tiny", ",tiny"))


def _with_blank(random: Random, word: str) -> str:
    return random.choice(BLANKS) + word if _chance(random, 0.5) else word + random.choice(BLANKS)


CHANGES = (_any_case, _look_alike, _mistyped, _with_prefix, _with_suffix, _with_blank)


def _changed(random: Random, word: str) -> str:
    """The word after one or two changes, which may come to nothing."""
    for change in random.sample(CHANGES, k=random.choice((1, 1, 2))):
        word = change(random, word)
    return word


def _other_type(random: Random, word: str) -> Any:
    return random.choice((None, True, False, 0, 5, -1.5, [], [word], {}, {"id": word}, {"model": word}, "", [[word]]))


def _model(random: Random) -> Any:
    own = random.choice((LOCAL_MODEL, LOCAL_MODEL, *CATALOGUE))
    theirs = random.choice((*CLOUD_MODELS, CLOUD_ALIAS))
    kinds: tuple[tuple[float, Callable[[], Any]], ...] = (
        (0.84, lambda: theirs),
        (0.04, lambda: own),
        (0.04, lambda: _changed(random, theirs)),
        (0.04, lambda: _changed(random, own)),
        (0.02, lambda: _other_type(random, theirs)),
        (0.01, lambda: random.choice((f"{own},{theirs}", f"{theirs} {own}", own + theirs, theirs[:-1], "x" * 300))),
        (0.01, lambda: "".join(random.choices("abcdlotu-/:. 0", k=random.randint(0, 12)))),
    )  # fmt: skip
    return random.choices([kind for _, kind in kinds], [share for share, _ in kinds])[0]()


def _number(random: Random) -> Any:
    """Of tokens: around the threshold, far off, and what is no count at all."""
    near = 1_024 + random.randint(-2, 2)
    texts = (
        f"{near}.{random.randint(0, 9)}",
        f"{near}e0",
        "1.1e3",
        "1E+2",
        "-0",
        "9" * 30,
        "1e400",
        "0.1e5",
        f"-{near}",
    )
    return random.choice(
        (near, near, random.randint(0, 1_000), random.randint(1_025, 9_000), Written(random.choice(texts)), f"{near}",
         "many", None, True, [near], {"max": near})
    )  # fmt: skip


def _effort(random: Random) -> Pair:
    word: Any = random.choice(("none", "minimal", "low", "medium", "high", "xhigh", "max", "ultra", ""))
    if _chance(random, 0.4):
        word = _changed(random, word) if word else _other_type(random, "high")
    place = random.choice(("reasoning_effort", "reasoning", "output_config"))
    if place == "reasoning_effort":
        return place, word
    outer = [("effort", word), ("summary", "auto")]
    random.shuffle(outer)
    return random.choice(
        ((place, tuple(outer)), (place, tuple(outer)), (place, [tuple(outer)]), (f"{place}.effort", word))
    )


def _tier(random: Random) -> Pair:
    word = random.choice(("priority", "priority", "auto", "flex"))
    return "service_tier", random.choice(
        (word, _any_case(random, word), _changed(random, word), _other_type(random, word))
    )


TEXTS = (
    'say "hi"',
    "{",
    "}",
    "\\",
    "ä",
    "语",
    "🙂",
    "\n",
    "\t",
    "what",
    '"model": "tiny"',
    '","model":"cloud-large","a":"',
    "[1",
    "/",
)


def _text(random: Random) -> str:
    """A few words, or as many bytes as bring the body near a threshold of the rules, or over the local context."""
    near = int(random.choice((500, 2_000)) * 4.2) + random.randint(-500, 60)
    long = random.choices((3_000, 70_000, 263_000), (92, 6, 2))[0]
    length = random.choice((random.randint(0, 40), random.randint(0, 40), near, near, 5_000, long))
    return "".join(random.choices(TEXTS, k=random.randint(0, 4))) + " model" * (length // 6) + "x" * (length % 6)


def _decoy(random: Random) -> Pair:
    """Names that a rule knows, where they are not the request's own."""
    value: Any = tuple(
        (name, random.choice((LOCAL_MODEL, "cloud-large", "priority", "high", 9_999, True)))
        for name in random.sample(("model", "service_tier", "max_tokens", "reasoning_effort", "effort", "stream"), k=3)
    )
    for _ in range(random.randint(0, 6)):
        value = [value] if _chance(random, 0.5) else ((random.choice(("model", "reasoning", "metadata", "a")), value),)
    if isinstance(value, tuple) and _chance(random, 0.2):
        value = _json(random, value, ("", 0.0))
    name = random.choice(
        ("metadata", "tools", "models", "model_", "Model", "MODEL", " model", "model\0", "$.model", "mode", "")
    )
    return name, value


def _fields(random: Random, token: str) -> list[Pair]:
    text = _text(random)
    fields: list[Pair] = [
        ("user", token),
        ("messages", [(("role", "user"), ("content", text), ("model", LOCAL_MODEL))]),
    ]
    if _chance(random, 0.15):
        one = "text of a prompt"
        prompt = random.choice(
            (one, [one] * random.randint(0, 6), [[1, 2]] * random.randint(1, 5), [1, 2, 3, 4, 5], [one, 1, {}])
        )
        fields.append(("prompt", prompt))
    if _chance(random, 0.96):
        fields.append(("model", _model(random)))
    shares: tuple[tuple[float, Callable[[], Pair]], ...] = (
        (0.04, lambda: ("model", _model(random))),
        (0.15, lambda: ("max_tokens", _number(random))),
        (0.15, lambda: ("max_completion_tokens", _number(random))),
        (0.02, lambda: ("max_tokens", _number(random))),
        (0.15, lambda: _tier(random)),
        (0.02, lambda: _tier(random)),
        (0.20, lambda: _effort(random)),
        (0.06, lambda: _effort(random)),
        (0.20, lambda: ("stream", random.choice((True, False, None, "true", 1)))),
        (0.30, lambda: _decoy(random)),
        (0.10, lambda: _decoy(random)),
    )
    fields += [field() for share, field in shares if _chance(random, share)]
    random.shuffle(fields)
    return fields


# How it is written down. An object is a tuple of pairs, so that names can repeat.

Style = tuple[str, float]
"""What stands between the parts, and how many strings are written in escapes."""


def _json(random: Random, value: Any, style: Style) -> str:
    blank, _ = style
    if isinstance(value, Written):
        return value.text
    if isinstance(value, tuple):
        pairs = (
            _string(random, name, style) + blank + ":" + blank + _json(random, item, style) for name, item in value
        )
        return "{" + blank + f"{blank},{blank}".join(pairs) + blank + "}"
    if isinstance(value, dict):
        return _json(random, tuple(value.items()), style)
    if isinstance(value, list):
        return "[" + blank + f",{blank}".join(_json(random, item, style) for item in value) + "]"
    return _string(random, value, style) if isinstance(value, str) else json.dumps(value)


def _string(random: Random, text: str, style: Style) -> str:
    if len(text) > 40 or not _chance(random, style[1]):
        return json.dumps(text, ensure_ascii=_chance(random, 0.2))
    share = random.choice((0.2, 1.0))
    return (
        '"' + "".join(_escaped(letter) if _chance(random, share) else json.dumps(letter)[1:-1] for letter in text) + '"'
    )


def _escaped(letter: str) -> str:
    """As \\uXXXX, halves of one if need be."""
    units = letter.encode("utf-16-be")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


BROKEN = (
    b",", b"}", b"{", b'"', b"NaN", b"01", b"\\", b"\x00", b"\x1f", b"\xe4", b"\xc0\x80", b"\xed\xa0\x80", b"'", b"//",
    b"[", b"]", b":", b"\xef\xbb\xbf", b"\xc2\xa0", b'"\\ud83d"', b'"\\x41"', b"tru", b"+1", b" ", b"\n",
)  # fmt: skip


def _body(random: Random, token: str) -> bytes:
    style = random.choice(("", "", " ", "\n  ", "\t")), random.choice((0.0, 0.0, 0.0, 0.4))
    body = _json(random, tuple(_fields(random, token)), style).encode()
    return body if _chance(random, 0.88) else _damaged(random, body)


def _damaged(random: Random, body: bytes) -> bytes:
    at = random.randrange(len(body))
    deep = random.choice((200, 254, 255, 256, 300))
    changes: tuple[Callable[[], bytes], ...] = (
        lambda: b"\xef\xbb\xbf" * random.choice((1, 1, 1, 2)) + body,
        lambda: body + random.choice((b"", b"\n", b",")) + body,
        lambda: b'{"model":"cloud-large"}' + body,
        lambda: body + b'{"model":"tiny"}',
        lambda: body[:at],
        lambda: body[:-1],
        lambda: body[:at] + random.choice(BROKEN) + body[at:],
        lambda: body[:at] + random.choice(BROKEN) + body[at + 1 :],
        lambda: body[:at] + bytes([random.randrange(256)]) + body[at + 1 :],
        lambda: random.choice(
            (b"", b" ", b"null", b'"cloud-large"', b"model=cloud-large", b"<model>cloud-large</model>")
        ),
        lambda: b"[" + body + b"]",
        lambda: body[:-1] + b"," + body[-1:],
        lambda: body[:1] + b'"deep":' + b"[" * deep + b"]" * deep + b"," + body[1:],
        lambda: body.decode(errors="replace").encode("latin-1", "replace").replace(b"what", b"\xe4"),
        lambda: body.decode(errors="replace").encode(random.choice(("utf-16", "utf-16-le"))),
        # Around the gateway's limit, 1 MiB.
        lambda: body.ljust(1024 * 1024 + random.choice((-1, 0, 0, 1, 900))) if _chance(random, 0.7) else body,
    )
    return random.choice(changes)()


def _pieces(random: Random, body: bytes) -> tuple[bytes, ...]:
    cuts = sorted(random.choices(range(len(body) + 1), k=random.choice((0, 1, 3, 9))))
    return tuple(body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True))


# Headers and targets.

ROUTES = ("local", "cloud", "local-only", "local-first", "cloud-first", "cloud-only")


def _route_value(random: Random) -> bytes:
    word: str = random.choice(ROUTES)
    kinds: tuple[Callable[[], str], ...] = (
        *[lambda: word] * 12,
        lambda: _any_case(random, word),
        lambda: random.choice((" ", "\t", "   ")) + word + random.choice((" ", "\t", "")),
        lambda: random.choice((",", ", ", " ,\t")).join([word, *random.choices(ROUTES, k=random.randint(1, 2))]),
        lambda: f'"{word}"',
        lambda: f'"{word}, {random.choice(ROUTES)}"',
        lambda: word + random.choice((";q=1", "; private", ".", ",", ",,local", ";", "=1", "\u00a0", "/")),
        lambda: _mistyped(random, word),
        lambda: _look_alike(random, word).replace("\0", ""),
        lambda: random.choice(("", " ", ",", ", ,")),
        lambda: random.choice(
            ("private", "none", "true", "1", "no", "off", "*", "default", "loc al", "lokal", "any", "null")
        ),
    )
    return random.choice(kinds)().encode()


def _headers(random: Random) -> list[Header]:
    headers: list[Header] = []
    if _chance(random, 0.25):
        headers += [
            (_spelled(random, "X-LLM-Route"), _route_value(random)) for _ in range(random.choice((1, 1, 1, 1, 2, 3)))
        ]
    if _chance(random, 0.25):
        task = random.choice(
            ("utility", "utility", "other", "", "utilities", "utility;q=1", "other, utility", '"utility"')
        )
        headers.append((_spelled(random, "X-LLM-Task"), random.choice((task, _any_case(random, task))).encode()))
    for name in ("X-LLM-Probe", "X-LLM-Patience", "X-LLM-Fallback", "X-LLM-Model", "X-LLM-Backend", "X-LLM-Reason"):
        if _chance(random, 0.02):
            headers.append((name.encode(), random.choice((b"1", b"local", b"cloud", b"short"))))
    kind = "application/json"
    types = (
        *[kind] * 4, f"{kind}; charset=utf-8", f"{kind}; charset=latin-1", kind.upper(), "text/plain", None, "",
        "application/x-www-form-urlencoded", "application/octet-stream", "x/multipart/form-data",
    )  # fmt: skip
    if _chance(random, 0.01):
        headers.append((b"Content-Type", _any_case(random, "multipart/form-data; boundary=x").encode()))
    elif (chosen := random.choice(types)) is not None:
        headers.append((b"Content-Type", chosen.encode()))
    if _chance(random, 0.05):
        coding = random.choice(("identity", "identity", "gzip", "br", "identity, gzip", "deflate", "x"))
        headers.append((b"Content-Encoding", random.choice((coding, _any_case(random, coding))).encode()))
    if _chance(random, 0.02):
        headers.append((b"Authorization", b"Bearer of-the-client"))
    random.shuffle(headers)
    return headers


def _spelled(random: Random, name: str) -> bytes:
    return (name if _chance(random, 0.7) else _any_case(random, name)).encode()


PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/messages", "/tokenize")


def _target(random: Random) -> tuple[bytes, bytes]:
    """The Host header and the target of the request line."""
    path = random.choices(PATHS, (76, 10, 6, 5, 3))[0]
    if _chance(random, 0.04):
        at = random.randrange(1, len(path))
        changes: tuple[Callable[[], str], ...] = (
            lambda: _any_case(random, path),
            lambda: path + random.choice(("/", "//", ";a", "/x", "%20", ".json")),
            lambda: "/v1" + path,
            lambda: path.removeprefix("/v1"),
            lambda: "/" + path,
            lambda: path[:at] + f"%{ord(path[at]):02x}" + path[at + 1 :],
            lambda: random.choice(("/v1/..", "/v1/.", "/x/..", "/.")) + path,
            lambda: _mistyped(random, path[1:]).join(("/", "")),
            lambda: random.choice(
                ("/", "/health", "/v1/models", "/v1/responses", "/metrics", "/props", "/completion", "/slots")
            ),
        )
        path = random.choice(changes)()
    host = random.choice(("127.0.0.1", f"127.0.0.1:{PORT}", f"localhost:{PORT}", "LOCALHOST"))
    query = random.choice(("", "", "", "", "", "", "?a=b", "?model=cloud-large", "?", "?/v1/chat/completions"))
    base = f"http://{host}" if _chance(random, 0.04) else ""
    return host.encode(), f"{base}{path}{query}".encode()
