"""The reader of bodies, run by the Lua of Debian 12 (5.3) and of Debian 13 and Ubuntu (5.4), against Python's own.

What the gateway's rules know of a request is what this reader says: it has to take exactly the texts that a strict
reader of JSON takes, and to find in them what is there.
"""

from __future__ import annotations

import json
import math
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lupa import lua53, lua54

from settings import Settings
from tasks import gateway
from tasks.routing import FIELDS
from tests.strict_json import BOM, DEEPEST, Pairs, document_of, value_at

PLACES = {
    "model": str,
    "service_tier": str,
    "reasoning_effort": str,
    "reasoning.effort": str,
    "output_config.effort": str,
    "max_tokens": int,
    "max_completion_tokens": int,
    "stream": bool,
    "cache_prompt": bool,
}
LONGEST = 256
LARGEST_NUMBER = 2**40
BODY_LIMIT = 64 * 1024
"""Bytes; what is larger is no body here, and an answer of that size is judged by how it begins."""

HARNESS = b"""
local actions = {}
core = { register_action = function(name, _, action) actions[name] = action end }
function run(name, body)
    local said = {}
    local function whole() return body end
    local function length() return #body end
    local txn = { f = { req_body = whole, res_body = whole, req_body_len = length, res_body_len = length } }
    function txn:set_var(variable, value) said[variable] = value end
    actions[name](txn)
    return said
end

-- Bytes that find and match walk over: what is done in C is no instruction of Lua's.
local walked = 0
for _, name in ipairs { "find", "match", "gsub" } do
    local original = string[name]
    string[name] = function(text, pattern, from, ...)
        local results = table.pack(original(text, pattern, from, ...))
        local first = name == "gsub" and 1 or from or 1
        if name == "find" and results[1] then
            walked = walked + results[2] - first + 1
        elseif name == "match" and math.type(results[results.n]) then
            walked = walked + results[results.n] - first
        elseif pattern:sub(1, 1) ~= "^" then
            walked = walked + #text - first + 1
        end
        return table.unpack(results, 1, results.n)
    end
end

function work_of(name, body)
    local hundreds = 0
    walked = 0
    collectgarbage()
    collectgarbage("stop")
    local before = collectgarbage("count")
    debug.sethook(function() hundreds = hundreds + 1 end, "", 100)
    run(name, body)
    debug.sethook()
    local made = collectgarbage("count") - before
    collectgarbage("restart")
    return hundreds * 100 + walked + math.floor(made * 1024)
end
"""


class Reader:
    """body.lua as the gateway loads it, with a transaction that only remembers what is set."""

    def __init__(self, lua: Any) -> None:
        chosen = Settings(max_body_kib=BODY_LIMIT // 1024)
        [source] = [file.content for file in gateway.reader_files(chosen) if file.path == gateway.BODY_READER_FILE]
        self.lua = lua.LuaRuntime(encoding=None)
        self.lua.execute(HARNESS)
        self.lua.execute(source.encode())

    def variables(self, action: str, body: bytes) -> dict[str, Any]:
        """What the action sets, by the names of HAProxy's variables."""
        said = self.lua.globals()[b"run"](action.encode(), body)
        return {name.decode(): value for name, value in said.items()}

    def work(self, body: bytes) -> int:
        """Instructions of Lua, bytes that its functions in C walked over, and bytes of memory that were asked for."""
        return int(self.lua.globals()[b"work_of"](b"read_request", body))


@cache
def readers() -> dict[str, Reader]:
    return {"5.3": Reader(lua53), "5.4": Reader(lua54)}


def expected(document: Pairs) -> dict[str, Any]:
    """The variables of a body that can be read."""
    said: dict[str, Any] = {}
    for place, kind in PLACES.items():
        value = value_at(document, place)
        if kind is bool and value is True:
            said[f"txn.{place}"] = True
        elif kind is str and isinstance(value, str) and "\0" not in value:
            said[f"txn.{place}"] = value
        elif kind is int and isinstance(value, int | float) and not isinstance(value, bool):
            said[f"txn.{place}"] = math.floor(max(-1, min(value, LARGEST_NUMBER)))
    prompts = [value for name, value in document if name == "prompt" and type(value) is list]
    said["txn.prompts"] = sum(
        isinstance(item, str | list) and not isinstance(item, Pairs) for p in prompts for item in p
    )
    return said


def text_of(value: Any) -> Any:
    """A string as Python has it: escaped halves of a character, each written by itself, are one."""
    if not isinstance(value, bytes):
        return value
    return value.decode("utf-8", "surrogatepass").encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def may_be_too_long(value: Any) -> bool:
    """Whether a string, written in the longest way, an escape for each half of a letter, is too long for a word."""
    return isinstance(value, str) and 6 * (len(value.encode("utf-16-le", "surrogatepass")) // 2) + 2 > LONGEST


def check(body: bytes) -> bool:
    """Compare each Lua with Python; returns whether the body was read."""
    document = document_of(body)
    for version, reader in readers().items():
        said = reader.variables("read_request", body)
        if document is None:
            assert set(said) == {"txn.unread", "txn.unread_at"}, (version, body, said)
            assert 1 <= said["txn.unread_at"] <= len(body) + 1
            continue
        found = {name: text_of(value) for name, value in said.items()}
        wanted = expected(document)
        optional = {name for name, value in wanted.items() if name not in found and may_be_too_long(value)}
        assert found == {name: value for name, value in wanted.items() if name not in optional}, (version, body)
    return document is not None


def test_the_places_are_those_of_the_product() -> None:
    assert set(PLACES) == set(FIELDS)


# A body is drawn as pairs and written down by hand, so that names repeat and every letter may be an escape.

NAMES = st.sampled_from(
    [part for place in PLACES for part in place.split(".")] * 2 + ["prompt", "messages", "model.", ""]
)
WORDS = st.sampled_from(
    ["cloud-large", "tiny", "high", "priority", "\0", '"model":"x"', "\\", "/", "\u2028", "\ud83d", "🙂"]
)
STRINGS = WORDS | st.text(st.characters(codec=None), max_size=12)
NUMBERS = st.integers() | st.integers(-3, 2_000) | st.floats(allow_nan=False, allow_infinity=False)
LITERALS = st.sampled_from(["true", "false", "null", "0", "-0", "1e5", "1E+2", "12.75", "1e999", "-1e999", "9" * 30])
BLANK = st.text(" \t\r\n", max_size=3)


@st.composite
def written_string(draw: st.DrawFn, text: str) -> str:
    """A string of JSON: some letters as they are, some escaped."""
    written = json.dumps(text, ensure_ascii=draw(st.booleans()))
    if draw(st.integers(0, 3)) or not text:
        return written
    return '"' + "".join(f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else letter for letter in text) + '"'


@st.composite
def written_value(draw: st.DrawFn, levels: int = 3) -> str:
    kind = draw(st.integers(0, 9 if levels else 6))
    if kind < 4:
        return draw(written_string(draw(STRINGS)))
    if kind < 6:
        return json.dumps(draw(NUMBERS))
    if kind == 6:
        return draw(LITERALS)
    if kind == 7:
        return "[" + ",".join(draw(st.lists(written_value(levels - 1), max_size=4))) + draw(BLANK) + "]"
    return draw(written_object(levels - 1))


@st.composite
def written_object(draw: st.DrawFn, levels: int = 3) -> str:
    pairs = []
    for _ in range(draw(st.integers(0, 5))):
        name = draw(written_string(draw(NAMES | STRINGS)))
        pairs.append(draw(BLANK) + name + draw(BLANK) + ":" + draw(BLANK) + draw(written_value(levels)) + draw(BLANK))
    return "{" + (",".join(pairs) or draw(BLANK)) + "}"


def in_utf8(text: str) -> bytes:
    """A half of a character can only be an escape."""
    return "".join(f"\\u{ord(letter):04x}" if "\ud800" <= letter <= "\udfff" else letter for letter in text).encode()


BODIES = st.builds(
    lambda bom, before, text, after: bom + in_utf8(before + text + after),
    st.sampled_from([b""] * 9 + [BOM]), BLANK, written_object(), BLANK,
)  # fmt: skip
DUMPED = st.builds(
    lambda value, ascii_, indent, separators: in_utf8(
        json.dumps(value, ensure_ascii=ascii_, indent=indent, separators=separators)
    ),
    st.dictionaries(
        NAMES | STRINGS,
        st.recursive(
            st.none() | st.booleans() | NUMBERS | STRINGS,
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | STRINGS, inner, max_size=4),
            max_leaves=12,
        ),
        max_size=8,
    ),
    st.booleans(),
    st.sampled_from([None, 0, 2, "\t"]),
    st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t:\r\n")]),
)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(BODIES | DUMPED)
@example(b'{"model":"a","m\\u006fdel":"b"}')
@example(b'{"reasoning.effort":"high","reasoning":{"effort":"low"}}')
@example(b'{"reasoning":{"effort":"high"},"reasoning":{"effort":"low"}}')
@example(b'{"reasoning":[{"effort":"high"}],"output_config":{"effort":{"effort":"low"}}}')
@example(b'{"model":"cloud-large\\u0000tiny"}')
@example(b'{"prompt":["a",["b"],1,{"c":1},[1,2]],"x":{"prompt":["d"]},"prompt":["e"]}')
@example(b'{"max_tokens":-0.5,"max_completion_tokens":1024.999}')
def test_what_is_there_is_found(body: bytes) -> None:
    assert check(body)


BROKEN = st.sampled_from(
    [
        b"NaN", b"Infinity", b"-Infinity", b"01", b"-01", b"1.", b".5", b"+1", b"1e", b"1e+", b"-", b"0x10", b"1_0",
        b"tru", b"nulL", b"True", b"None", b"'a'", b'"', b'"a', b'"\\"', b'"\\x41"', b'"\\u12G4"', b'"\\u123',
        b'"\\u+123"', b'"\\', b'"\n"', b'"\x00"', b'"\x1f"', b'"\x7f"', b'"\t"', b"\x0c", b"\x0b", b"\xa0",
        b"\xc2\xa0", b"\xe2\x80\xa8", BOM, b"/* */", b"//", b"#", b",", b",,", b":", b"{", b"}", b"[", b"]", b"{}",
        b"[]", b"\x00", b"\\", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xed\x9f\xbf", b"\xf4\x90\x80\x80",
        b"\xf0\x80\x80\x80", b"\xe4", b"\xd9\xa1", b'"\\ud83d"',
    ]
)  # fmt: skip
PIECES = BROKEN | st.binary(min_size=1, max_size=2) | st.sampled_from([bytes([n]) for n in b'{}[]",:\\ 0-.eEtfnu\t\n'])


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A body to which up to three things have happened."""
    body = draw(BODIES | DUMPED)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(body)))
        match draw(st.integers(0, 6)):
            case 0:
                body = body[:at] + body[at + draw(st.integers(1, 3)) :]
            case 1 | 2:
                body = body[:at] + draw(PIECES) + body[at:]
            case 3:
                body = body[:at] + draw(PIECES) + body[at + 1 :]
            case 4:
                body = body[:at]
            case 5:
                body = body + draw(BLANK).encode() + draw(BODIES | PIECES)
            case _:
                levels = draw(st.integers(DEEPEST - 4, DEEPEST + 4))
                opened, closed = draw(st.sampled_from([(b"[", b"]"), (b'{"model":', b"}")]))
                body = b'{"a":' + opened * levels + (body if body.strip() else b"1") + closed * levels + b"}"
    return body


@settings(max_examples=2_500, deadline=None, derandomize=True)
@given(mutated())
@example(b"")
@example(BOM)
@example(BOM + BOM + b"{}")
@example(b" " + BOM + b"{}")
@example(b"[1]")
@example(b'"{}"')
@example(b'{"model":"cloud-large"}{"model":"tiny"}')
@example(b'{"a":' + b"[" * 100_000)
@example(b'{"a":' + b"9" * 5_000 + b"}")
def test_a_body_is_read_if_and_only_if_a_strict_reader_takes_it(body: bytes) -> None:
    check(body)


def test_the_mutations_are_of_both_kinds() -> None:
    """So that the test above means something."""
    taken: list[bool] = []

    @settings(max_examples=400, deadline=None, derandomize=True, database=None)
    @given(mutated())
    def count(body: bytes) -> None:
        taken.append(document_of(body) is not None)

    count()
    assert 20 < sum(taken) < len(taken) - 20


@pytest.mark.parametrize("version", ["5.3", "5.4"])
@pytest.mark.parametrize(
    ("body", "unread", "at"),
    [
        (b"", "empty", 1),
        (b" \n", "empty", 1),
        (BOM, "empty", 1),
        (b"[]", "object", 1),
        (b" 1", "object", 2),
        (b"x", "object", 1),
        (b'{"a":"\xe4"}', "encoding", 7),
        (b'{"a":"\xed\xa0\x80"}', "encoding", 7),
        (b'{"a":1,}', "syntax", 8),
        (b'{"a":1} x', "syntax", 9),
        (b'{"a":"b', "syntax", 8),
        (b'{"a":"b\nc"}', "syntax", 8),
        (b'{"a":"b\\qc"}', "syntax", 8),
        (b'{"a":nul}', "syntax", 6),
        (b'{"a":' + b"[" * 255 + b"]" * 255 + b"}", None, None),
        (b'{"a":' + b"[" * 256 + b"]" * 256 + b"}", "depth", 261),
    ],
)
def test_what_is_wrong_is_told_and_where(version: str, body: bytes, unread: str | None, at: int | None) -> None:
    said = readers()[version].variables("read_request", body)
    assert said == ({"txn.prompts": 0} if unread is None else {"txn.unread": unread.encode(), "txn.unread_at": at})


@pytest.mark.parametrize("version", ["5.3", "5.4"])
def test_a_value_that_is_longer_than_any_word_is_none(version: str) -> None:
    def found(model: bytes) -> bool:
        return "txn.model" in readers()[version].variables("read_request", b'{"model":"' + model + b'"}')

    assert found(b"a" * (LONGEST - 2))
    assert not found(b"a" * (LONGEST - 1))
    assert found(b"\\u0061" * 42)
    assert not found(b"\\u0061" * 43)


def shapes(size: int) -> dict[str, bytes]:
    """Bodies of about that many bytes, each to make a reader walk over the same bytes again and again."""
    pairs = size // 8
    return {
        "prose": b'{"a":"' + b"word " * (size // 5) + b'"}',
        "escaped quotes": b'{"a":"' + rb"\"" * (size // 2) + b'"}',
        "escapes": b'{"a":"' + rb"\u0061" * (size // 6) + b'"}',
        "escaped name": b'{"' + rb"\u0061" * (size // 6) + b'":1}',
        "strings": b'{"a":[' + b'"b",' * (size // 4) + b"1]}",
        "strings, then one escape": b'{"a":[' + b'"b",' * (size // 4) + rb'"\n"]}',
        "strings, then one control character": b'{"a":[' + b'"b",' * (size // 4) + b'"\x01"]}',
        "strings and lines": b'{"a":[' + b'"b",\n' * (size // 5) + b"1]}",
        "string without end": b'{"a":"' + b"b" * size,
        "escapes without end": b'{"a":"' + rb"\n" * (size // 2),
        "escapes between strings": b'{"a":[' + rb'"b","\\",' * (size // 9) + b"1]}",
        "tokens": b'{"prompt":[' + b"12345," * (size // 6) + b"1]}",
        "one number": b'{"max_tokens":' + b"1" * size + b"}",
        "one number cut": b'{"a":' + b"1" * size,
        "names": b"{" + b'"ab":1, ' * pairs + b'"a":1}',
        "one name": b"{" + b'"model":' * 1 + b'"a"' + b',"model":"a"' * (size // 12) + b"}",
        "names in a long name": b'{"' + b"a" * (size // 2) + b'":{' + b'"b":1,' * (size // 12) + b'"b":1}}',
        "names in a wanted name": b'{"reasoning":{' + b'"effort":1,' * (size // 11) + b'"b":1}}',
        "long names in a wanted name": b'{"reasoning":{' + (b'"' + b"b" * 200 + b'":1,') * (size // 205) + b'"b":1}}',
        "blank": b'{"a":' + b" " * size + b"1}",
        "blank between": b'{"a":[' + b" \n 1 , " * (size // 7) + b"1]}",
        "blank only": b" " * size,
        "lists": b'{"a":[' + b"[]," * (size // 3) + b"1]}",
        "deep lists": b'{"a":[' + (b"[" * 200 + b"]" * 200 + b",") * (size // 401) + b"1]}",
        "broken depth": b'{"a":' + b"[" * size,
        "documents": b"{}" * (size // 2),
        "surrogates": b'{"a":"' + b"\xed\x9f\xbf" * (size // 3) + b'"}',
    }


@pytest.mark.parametrize("version", ["5.3", "5.4"])
@pytest.mark.parametrize("shape", shapes(8))
def test_twice_the_body_is_twice_the_work(version: str, shape: str) -> None:
    works = [readers()[version].work(shapes(size)[shape]) for size in (20_000, 40_000, 80_000)]
    # What every body costs is little; a square would be four times as much.
    for half, whole in pairwise(works):
        assert whole < 2.2 * half + 20_000, works


@pytest.mark.parametrize("version", ["5.3", "5.4"])
@pytest.mark.parametrize(
    ("answer", "counts"),
    [
        (b'{"choices":[]}', True),
        (b"{}", True),
        (b' {"id":"x"}\n', True),
        (BOM + b'{"id":"x"}', True),
        (b'{"type":"message","content":[]}', True),
        (b'{"error":null,"choices":[]}', True),
        (b'{"choices":[{"error":{"message":"in the text"}}]}', True),
        (b'{"choices":"\\"error\\":1"}', True),
        (b'{"error":{"message":"no"}}', False),
        (b'{"error":"no"}', False),
        (b'{"choices":[],"error":{}}', False),
        (b'{"\\u0065rror":{}}', False),
        (b'{"type":"error","error":{"type":"overloaded_error"}}', False),
        (b'{"type":"error"}', False),
        (b"", False),
        (b" ", False),
        (b"[]", False),
        (b'"OK"', False),
        (b"null", False),
        (b"<html><body>It works!</body></html>", False),
        (b'{"choices":[', False),
        (b'{"choices":[]}{"error":{}}', False),
        (b'{"a":"\xff"}', False),
        # Larger than HAProxy is sure to hold: cut off, perhaps, so it is judged by how it begins.
        (b'{"choices":["'.ljust(BODY_LIMIT, b"a"), True),
        (b'\n {"choices":["'.ljust(BODY_LIMIT, b"a"), True),
        (b'{"choices":["'.ljust(BODY_LIMIT - 1, b"a"), False),
        (b'{"choices":["'.ljust(BODY_LIMIT - 3, b"a") + b'"]}', True),
        (b"<html>".ljust(BODY_LIMIT, b"a"), False),
        (b"[".ljust(BODY_LIMIT, b"1"), False),
    ],
    ids=lambda value: value[:24].decode("latin-1") if isinstance(value, bytes) else "",
)
def test_what_counts_as_an_answer(version: str, answer: bytes, counts: bool) -> None:
    assert readers()[version].variables("read_answer", answer) == ({"txn.is_answer": True} if counts else {})
