"""What a file says, compared with the dataclass that describes it: names, types and bounds, in words for its user."""

from __future__ import annotations

import dataclasses
import difflib
import reprlib
from functools import cache
from typing import Any, Literal, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from stripedhyena2.errors import ConfigError

T = TypeVar("T")

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping of names to values",
    "model_type": "a mapping of names to values",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge:,}",
    "less_than_equal": "at most {le:,}",
    "string_too_short": "text of {min_length:,} or more characters",
    "string_too_long": "text of {max_length:,} or fewer characters",
    "too_short": "{min_length:,} or more entries",
    "too_long": "{max_length:,} or fewer entries",
    "string_pattern_mismatch": "text like {pattern}",
    "literal_error": "{expected}",
}
"""What a field should have been, by what pydantic found wrong with it."""

_SHOWN = 4
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


def parse(kind: type[T], values: object, where: str, *, unknown: Literal["forbid", "ignore"] = "forbid") -> T:
    """The dataclass `kind` with these values by field name.

    Args:
        where: the file, or whatever else the values come from, for messages.
        unknown: what to do about values that `kind` has no field for.

    Raises:
        ConfigError: names are missing or unknown, or a value is not what the field's annotation says. It names the
            field, the value and what was expected.
    """
    return kind(**validate(kind, values, where, unknown=unknown))


def validate(
    kind: type, values: object, where: str, *, unknown: Literal["forbid", "ignore"] = "forbid"
) -> dict[str, Any]:
    """What `parse` does, but the fields alone, by name."""
    try:
        checked = _model(kind, unknown).model_validate(values)
    except ValidationError as e:
        raise ConfigError(_message(kind, where, e.errors(include_url=False))) from None
    return {f.name: getattr(checked, f.name) for f in dataclasses.fields(kind)}


@cache
def _model(kind: type, unknown: Literal["forbid", "ignore"]) -> type[BaseModel]:
    hints = get_type_hints(kind, include_extras=True)
    fields: dict[str, Any] = {f.name: (hints[f.name], _default(f)) for f in dataclasses.fields(kind)}
    config = ConfigDict(strict=True, extra=unknown, allow_inf_nan=False, protected_namespaces=())
    return create_model(kind.__name__, __config__=config, **fields)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return Field(default_factory=field.default_factory)
    return ... if field.default is dataclasses.MISSING else field.default


def _message(kind: type, where: str, errors: list[Any]) -> str:
    missing = [_place(e["loc"]) for e in errors if e["type"] == "missing"]
    if missing:
        return f"{where} lacks {_fields(missing)}; add what is missing"
    unknown = [_place(e["loc"]) for e in errors if e["type"] == "extra_forbidden"]
    if unknown:
        near = difflib.get_close_matches(unknown[0], [f.name for f in dataclasses.fields(kind)], n=1)
        hint = f"did you mean {near[0]}?" if near else "remove it, or update evo2"
        return f"{where} has {_fields(unknown, 'unknown ')}; {hint}"
    first = errors[0]
    expected = _EXPECTED.get(first["type"], "another kind of value").format_map(first.get("ctx", {}))
    value = shown(first["input"])
    if not first["loc"]:
        return f"{where} holds {value}, expected {expected}; correct it, or get it again"
    return f"{where}: {_place(first['loc'])} is {value}, expected {expected}; correct it, or get it again"


def _fields(names: list[str], kind: str = "") -> str:
    few = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return f"the {kind}field{'s' if len(names) > 1 else ''} {few}"


def _place(loc: tuple[int | str, ...]) -> str:
    """A place in nested values, as in a.b[3]."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return named(text)


def named(key: object) -> str:
    """A name as it is, or, where it is none that anyone would give, a short form of it on one line."""
    return key if isinstance(key, str) and key.isprintable() and 0 < len(key) <= 100 else shown(key)


def shown(value: object) -> str:
    """A value on one line and short, whatever it is."""
    try:
        return " ".join(_SHORT.repr(value).split())
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"
