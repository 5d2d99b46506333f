"""Bodies that programs get wrong: requests to each endpoint with values of wrong types and shapes in odd places."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

Body = tuple[str, bytes]
"""A path, and what is sent to it."""

WORDS = st.sampled_from(
    ["", "hi", "text", "user", "auto", "none", "required", "json_object", "a\x00b", "ä🙂", "{", "<tool_call>", "%s"]
)
NUMBERS = st.sampled_from([0, 1, -1, 2, 0.5, -0.0, 1e308, 2**31, 2**63, -(2**63), 1e400, 99_999])
JUNK = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.sampled_from(["type", "content"]), inner, max_size=3)
    ),
    max_leaves=5,
)


def nearly(right: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly what it should be."""
    return st.one_of(right, right, right, JUNK)


def record(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Any of the fields, each nearly right."""
    return st.fixed_dictionaries({}, optional={name: nearly(field) for name, field in fields.items()})


SCHEMA_TYPES = st.sampled_from(["string", "number", "integer", "object", "array", "boolean", "null", "nonsense"])
SCHEMAS: st.SearchStrategy[Any] = st.deferred(
    lambda: (
        record(
            type=SCHEMA_TYPES | st.lists(SCHEMA_TYPES, max_size=2),
            properties=st.dictionaries(WORDS, nearly(SCHEMAS), max_size=2),
            required=st.lists(WORDS, max_size=2),
            items=SCHEMAS | st.lists(SCHEMAS, max_size=2),
            enum=st.lists(JUNK, max_size=3),
            const=JUNK,
            anyOf=st.lists(SCHEMAS, max_size=2),
            allOf=st.lists(SCHEMAS, max_size=2),
            pattern=st.sampled_from(["^a$", "(((", "[", "a{9", "^(a|b)*$", "\\", ""]),
            minLength=NUMBERS,
            maxItems=NUMBERS,
            format=st.sampled_from(["date", "uuid", "nonsense"]),
        )
        | st.builds(
            lambda reference: {"$ref": reference}, st.sampled_from(["#/$defs/a", "#", "http://127.0.0.1/x", ""])
        )
    )
)
GRAMMARS = st.text('rot:="[]()|*+?{}\\ \na-z0^', max_size=20).map(lambda rule: f"root ::= {rule}") | WORDS
ARGUMENTS = st.sampled_from(["{}", '{"a":1}', '{"a": ', "", "[]", "null", "x"])
CALLS = record(id=WORDS, type=st.just("function"), function=record(name=WORDS, arguments=ARGUMENTS), index=NUMBERS)
TOOLS = record(
    type=st.sampled_from(["function", "function", "web_search"]),
    function=record(name=WORDS, description=WORDS, parameters=SCHEMAS, strict=st.booleans()),
)
IMAGES = st.sampled_from(["data:image/png;base64,AAAA", "http://127.0.0.1:1/x.png", "file:///etc/passwd", ""])
PARTS = record(
    type=st.sampled_from(
        ["text", "text", "image_url", "input_audio", "file", "refusal", "tool_use", "tool_result", "thinking"]
    ),
    text=WORDS,
    image_url=record(url=IMAGES) | IMAGES,
    input_audio=record(data=WORDS, format=WORDS),
    file=record(file_data=WORDS, file_id=WORDS),
    content=WORDS,
    tool_use_id=WORDS,
    input=JUNK,
)
MESSAGES = st.lists(
    nearly(
        record(
            role=st.sampled_from(["system", "developer", "user", "assistant", "tool", "function", "robot"]),
            content=WORDS | st.lists(nearly(PARTS), max_size=3),
            tool_calls=st.lists(nearly(CALLS), max_size=2),
            tool_call_id=WORDS,
            name=WORDS,
            reasoning_content=WORDS,
        )
    ),
    max_size=4,
)
SAMPLING = {
    "temperature": NUMBERS, "top_p": NUMBERS, "top_k": NUMBERS, "seed": NUMBERS, "n": NUMBERS, "stream": st.booleans(),
    "stop": WORDS | st.lists(WORDS, max_size=2), "logit_bias": st.dictionaries(WORDS, NUMBERS, max_size=2),
    "logprobs": st.booleans(), "top_logprobs": NUMBERS, "presence_penalty": NUMBERS, "grammar": GRAMMARS,
    "json_schema": SCHEMAS, "samplers": st.lists(WORDS, max_size=2), "mirostat": NUMBERS, "n_keep": NUMBERS,
    "stream_options": record(include_usage=st.booleans()), "user": WORDS, "id_slot": NUMBERS, "lora": JUNK,
    "dry_multiplier": NUMBERS, "min_keep": NUMBERS, "n_probs": NUMBERS, "timings_per_token": st.booleans(),
}  # fmt: skip
CHAT = record(
    messages=MESSAGES,
    tools=st.lists(nearly(TOOLS), max_size=2),
    tool_choice=st.sampled_from(["auto", "none", "required"])
    | record(type=st.just("function"), function=record(name=WORDS)),
    parallel_tool_calls=st.booleans(),
    response_format=record(
        type=st.sampled_from(["text", "json_object", "json_schema"]), json_schema=record(name=WORDS, schema=SCHEMAS)
    ),
    chat_template_kwargs=JUNK,
    reasoning_format=WORDS,
    add_generation_prompt=st.booleans(),
)
PROMPTS = WORDS | st.lists(WORDS | st.integers(-2, 40), max_size=4) | st.lists(st.lists(st.integers(0, 40)), max_size=3)
COMPLETION = record(prompt=PROMPTS, suffix=WORDS, echo=st.booleans(), best_of=NUMBERS)
ANTHROPIC = record(
    messages=MESSAGES,
    system=WORDS | st.lists(PARTS, max_size=2),
    tools=st.lists(record(name=WORDS, description=WORDS, input_schema=SCHEMAS), max_size=2),
    tool_choice=record(type=st.sampled_from(["auto", "any", "tool"]), name=WORDS),
    stop_sequences=st.lists(WORDS, max_size=2),
    thinking=record(type=st.sampled_from(["enabled", "disabled"]), budget_tokens=NUMBERS),
    metadata=JUNK,
)
TOKENIZE = record(content=WORDS, add_special=st.booleans(), parse_special=st.booleans(), with_pieces=st.booleans())


def asking(path: str, own: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[Body]:
    """To that path, for an answer of a few words; up to three of the fields that every sampler knows."""
    sampling = st.lists(st.sampled_from(sorted(SAMPLING)), max_size=3, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: nearly(SAMPLING[name]) for name in names})
    )
    return st.tuples(
        st.just(path), st.builds(lambda own, more: json.dumps({"max_tokens": 8, **more, **own}).encode(), own, sampling)
    )


OBJECTS = st.one_of(
    asking("/v1/chat/completions", CHAT),
    asking("/v1/chat/completions", CHAT),
    asking("/v1/completions", COMPLETION),
    asking("/v1/messages", ANTHROPIC),
    asking("/tokenize", TOKENIZE),
)
PATHS = st.sampled_from(["/v1/chat/completions", "/v1/completions", "/v1/messages", "/tokenize"])
NO_OBJECTS = st.tuples(
    PATHS,
    st.binary(max_size=60)
    | JUNK.filter(lambda junk: not isinstance(junk, dict)).map(lambda junk: json.dumps(junk).encode()),
)


def drawn(strategy: st.SearchStrategy[Body], count: int) -> list[Body]:
    """Always the same bodies, none twice."""
    bodies: dict[Body, None] = {}

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(body: Body) -> None:
        bodies[body] = None

    run: Callable[[], None] = collect
    run()
    return list(bodies)
