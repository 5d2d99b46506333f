"""JSON to dataclasses by their own types, and back.

The type of a field says all that may stand for it: text is one line and not empty, a list of text is not empty, a
number with a fraction is above 0. Everything else is written beside the type as `Annotated[type, rule]`. Keys that
the dataclass does not have are ignored.
"""

import dataclasses
import functools
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

T = TypeVar("T")


class DefectError(Exception):
    """A value is missing or wrong; the message is one line that names its key."""


class Rule:
    """What is allowed beyond the type, and how such a value is written in JSON: as it is, unless the rule says how."""

    written: type = str
    """The type of the value in JSON."""

    def load(self, value: Any) -> Any:
        """The value that is meant; raises ValueError, with what was expected, where there is none."""
        raise NotImplementedError

    def dump(self, value: Any) -> Any:
        """The value as it is written."""
        return value


@dataclass(frozen=True)
class Matches(Rule):
    """Text that the pattern matches as a whole."""

    pattern: str

    def load(self, value: str) -> str:
        if not re.fullmatch(self.pattern, value):
            raise ValueError("which is not a usable value")
        return value


@dataclass(frozen=True)
class Within(Rule):
    """A whole number between two, both included."""

    minimum: int
    maximum: int | None = None
    written = int

    def load(self, value: int) -> int:
        if value < self.minimum or (self.maximum is not None and value > self.maximum):
            most = f" and at most {self.maximum}" if self.maximum is not None else ""
            raise ValueError(f"expected at least {self.minimum}{most}")
        return value


@dataclass(frozen=True)
class Address(Rule):
    """An http address; a slash at its end is left out."""

    def load(self, value: str) -> str:
        if not re.fullmatch(r"https?://\S+", value) or not _has_host_and_port(value):
            raise ValueError("which is not an address")
        return value.rstrip("/")


@dataclass(frozen=True)
class Octal(Rule):
    """The permissions of a file, in JSON as chmod takes them."""

    def load(self, value: str) -> int:
        if not re.fullmatch(r"[0-7]{3,4}", value):
            raise ValueError("which is not a usable value")
        return int(value, 8)

    def dump(self, value: int) -> str:
        return f"{value:04o}"


def _has_host_and_port(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and (parts.port is None or parts.port >= 0)
    except ValueError:  # of a port that is none
        return False


def load(kind: type[T], data: object, name: str = "") -> T:
    """An object of the dataclass from what was JSON; raises DefectError."""
    if not isinstance(data, dict):
        raise DefectError("the file is not a JSON object" if not name else _unexpected(name, data, dict))
    values = {}
    for key, hint in _hints(cast(Any, kind)).items():
        label = f"{name}.{key}" if name else key
        if key not in data:
            raise DefectError(f"“{label}” is missing")
        values[key] = _loaded(hint, data[key], label)
    return kind(**values)


def dump(value: object) -> object:
    """What becomes JSON, from an object of a dataclass."""
    return {key: _dumped(hint, getattr(value, key)) for key, hint in _hints(cast(Any, type(value))).items()}


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _loaded(hint: Any, value: object, label: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in _UNIONS:
        return None if value is None else _loaded(arguments[0], value, label)
    if origin is Annotated:
        rule: Rule = arguments[1]
        _require(value, rule.written, label)
        try:
            return rule.load(value)
        except ValueError as error:
            raise DefectError(f"“{label}” is {value!r}, {error}") from None
    if origin is tuple:
        return _loaded_list(arguments[0], value, label)
    if origin is Mapping:
        found = _require(value, dict, label)
        return {key: _loaded(arguments[1], each, f"{label}.{key}") for key, each in found.items()}
    if dataclasses.is_dataclass(hint):
        return load(cast("type[Any]", hint), value, label)
    return _loaded_plain(hint, value, label)


def _loaded_list(kind: Any, value: object, label: str) -> tuple[Any, ...]:
    items = _require(value, list, label)
    if kind is str and (not items or not all(isinstance(item, str) and item for item in items)):
        raise DefectError(f"“{label}” is {items!r}, expected a list of text")
    return tuple(_loaded(kind, item, f"{label}[{number}]") for number, item in enumerate(items))


def _loaded_plain(kind: type, value: object, label: str) -> Any:
    if kind is float and type(value) is int:
        value = float(value)
    _require(value, kind, label)
    if kind is str and not re.fullmatch(r".+", value):  # type: ignore[call-overload]
        raise DefectError(f"“{label}” is {value!r}, which is not a usable value")
    if kind is float and not value > 0:  # type: ignore[operator]
        raise DefectError(f"“{label}” is {value}, expected more than 0")
    return value


def _require(value: object, kind: type, label: str) -> Any:
    # bool is an int to isinstance; `true` is no number here.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise DefectError(_unexpected(label, value, kind))
    return value


def _unexpected(label: str, value: object, kind: type) -> str:
    return f"“{label}” is {value!r}, expected {_KINDS[kind]}"


# `X | None` is the one or the other, as X has annotations or not.
_UNIONS = (types.UnionType, Union)
_KINDS: dict[type, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def _dumped(hint: Any, value: Any) -> object:
    origin, arguments = get_origin(hint), get_args(hint)
    if value is None:
        return None
    if origin in _UNIONS:
        return _dumped(arguments[0], value)
    if origin is Annotated:
        rule: Rule = arguments[1]
        return rule.dump(value)
    if origin is tuple:
        return [_dumped(arguments[0], each) for each in value]
    if origin is Mapping:
        return {key: _dumped(arguments[1], each) for key, each in value.items()}
    return dump(value) if dataclasses.is_dataclass(hint) else value
