"""Reading a message body field by field, with the path of what is wrong. Strict for requests, tolerant for replies."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from luna_engine.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")
LIST_MAX = 512
TEXT_MAX = 32_768
_SCALARS = frozenset({type(None), bool, str, int, float})


class Body(Protocol):
    """A message body: a frozen dataclass that reads itself from `Fields` and is written by `plain`."""

    @classmethod
    def decode(cls, fields: Fields) -> Body:
        """Read all fields."""
        ...


B = TypeVar("B", bound=Body)


def invalid(path: str, message: str) -> DaemonError:
    """Return the ``request-invalid`` error for one field."""
    return DaemonError("request-invalid", f"{path}: {message}", details={"path": path})


def decode_body(kind: type[B], raw: object, *, strict: bool) -> B:
    """Decode a body.

    Args:
        kind: the dataclass of the body.
        raw: the parsed JSON.
        strict: refuse unknown fields (requests) or ignore them (replies).

    Raises:
        DaemonError: ``request-invalid`` with the path of the first wrong field.
    """
    fields = Fields(raw, "body", strict=strict)
    body = kind.decode(fields)
    fields.end()
    return body  # type: ignore[return-value]  # decode returns its own class


def plain(value: object) -> Any:
    """Return a body as JSON-ready dicts and lists; a class may define ``as_wire`` where names differ."""
    kind = type(value)
    if kind in _SCALARS:
        return value
    names = _names(kind)  # type: ignore[arg-type]  # typeshed thinks that classes cannot be hashed
    if names is not None:
        return {name: inner if type(inner := getattr(value, name)) in _SCALARS else plain(inner) for name in names}
    if hasattr(kind, "as_wire"):
        return value.as_wire()  # type: ignore[attr-defined]  # just looked
    if isinstance(value, (str, int, float)):
        return value
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return value


@functools.cache
def _names(kind: type) -> tuple[str, ...] | None:
    """Return the fields of a dataclass, None for any other class and for one that writes itself."""
    is_plain = dataclasses.is_dataclass(kind) and not hasattr(kind, "as_wire")
    return tuple(entry.name for entry in dataclasses.fields(kind)) if is_plain else None


class Fields:
    """One JSON object being read; each reader method takes its field out, `end` complains about the rest."""

    __slots__ = ("_left", "_path", "strict")

    def __init__(self, raw: object, path: str, *, strict: bool) -> None:
        if not isinstance(raw, dict):
            raise invalid(path, f"expected an object, found {_kind(raw)}")
        self._left: dict[str, Any] = dict(raw)
        self._path = path
        self.strict = strict

    @classmethod
    def read(cls, raw: object, path: str, decode: Callable[[Fields], T], *, strict: bool) -> T:
        """Read one object whole."""
        fields = cls(raw, path, strict=strict)
        value = decode(fields)
        fields.end()
        return value

    def end(self) -> None:
        """Refuse what nobody asked for."""
        if self.strict and self._left:
            name = next(iter(self._left))
            raise invalid(f"{self._path}.{name}", "unknown field")

    def place(self, name: str) -> str:
        """Return the path of a field."""
        return f"{self._path}.{name}"

    def take(self, name: str) -> Any:
        """Return the raw value, None if absent."""
        return self._left.pop(name, None)

    def _required(self, name: str, value: T | None) -> T:
        if value is None:
            raise invalid(self.place(name), "missing")
        return value

    def text_or_none(self, name: str, *, longest: int = TEXT_MAX) -> str | None:
        """Read an optional text."""
        value = self._left.pop(name, None)
        if value is None or (type(value) is str and len(value) <= longest):
            return value
        if not isinstance(value, str):
            raise invalid(self.place(name), f"expected a text, found {_kind(value)}")
        raise invalid(self.place(name), f"{len(value)} characters, at most {longest} are accepted")

    def text(self, name: str, default: str | None = None, *, longest: int = TEXT_MAX) -> str:
        """Read a text; without a default it must be there."""
        value = self.text_or_none(name, longest=longest)
        return self._required(name, default) if value is None else value

    def choice(self, name: str, options: Sequence[str], default: str | None = None) -> str:
        """Read a text out of a list."""
        value = self.text(name, default)
        if value not in options and self.strict:
            raise invalid(self.place(name), f"{value!r} is none of {', '.join(options)}")
        return value

    def integer_or_none(self, name: str, low: int = 0, high: int = 2**53) -> int | None:
        """Read an optional integer within bounds."""
        value = self._left.pop(name, None)
        if value is None or (type(value) is int and low <= value <= high):
            return value
        if type(value) is not int:
            raise invalid(self.place(name), f"expected an integer, found {_kind(value)}")
        raise invalid(self.place(name), f"{value} is outside {low} to {high}")

    def integer(self, name: str, default: int | None = None, low: int = 0, high: int = 2**53) -> int:
        """Read an integer; without a default it must be there."""
        value = self.integer_or_none(name, low, high)
        if value is None:
            return self._required(name, default)
        return value

    def number_or_none(self, name: str) -> float | None:
        """Read an optional number."""
        value = self._left.pop(name, None)
        if value is None:
            return None
        if type(value) not in {int, float}:
            raise invalid(self.place(name), f"expected a number, found {_kind(value)}")
        return float(value)

    def number(self, name: str, default: float | None = None) -> float:
        """Read a number; without a default it must be there."""
        value = self.number_or_none(name)
        if value is None:
            return self._required(name, default)
        return value

    def boolean_or_none(self, name: str) -> bool | None:
        """Read an optional truth value."""
        value = self._left.pop(name, None)
        if value is not None and not isinstance(value, bool):
            raise invalid(self.place(name), f"expected true or false, found {_kind(value)}")
        return value

    def boolean(self, name: str, default: bool | None = None) -> bool:  # noqa: FBT001 - the default of a truth value
        """Read a truth value; without a default it must be there."""
        value = self.boolean_or_none(name)
        if value is None:
            return self._required(name, default)
        return value

    def wide_integer(self, name: str) -> int:
        """Read an integer that may exceed 2**53 and therefore travels as decimal digits."""
        value = self._left.pop(name, None)
        if type(value) is int and value >= 0:
            return value
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 20:
            return int(value)
        raise invalid(self.place(name), f"expected decimal digits, found {_kind(value)}")

    def nested_or_none(self, name: str, decode: Callable[[Fields], T]) -> T | None:
        """Read an optional object."""
        value = self._left.pop(name, None)
        if value is None:
            return None
        return Fields.read(value, self.place(name), decode, strict=self.strict)

    def nested(self, name: str, decode: Callable[[Fields], T]) -> T:
        """Read an object that must be there."""
        return self._required(name, self.nested_or_none(name, decode))

    def _items(self, name: str, most: int) -> list[Any]:
        value = self._left.pop(name, None)
        if value is None:
            return []
        if not isinstance(value, list):
            raise invalid(self.place(name), f"expected a list, found {_kind(value)}")
        if len(value) > most and self.strict:
            raise invalid(self.place(name), f"{len(value)} entries, at most {most} are accepted")
        return value

    def objects(self, name: str, decode: Callable[[Fields], T], *, most: int = LIST_MAX) -> tuple[T, ...]:
        """Read a list of objects; absent is empty."""
        return tuple(
            Fields.read(item, f"{self.place(name)}[{index}]", decode, strict=self.strict)
            for index, item in enumerate(self._items(name, most))
        )

    def texts(self, name: str, *, most: int = LIST_MAX, longest: int = TEXT_MAX) -> tuple[str, ...]:
        """Read a list of texts; absent is empty."""
        items = self._items(name, most)
        for index, item in enumerate(items):
            if not isinstance(item, str) or len(item) > longest:
                raise invalid(f"{self.place(name)}[{index}]", f"expected a text, found {_kind(item)}")
        return tuple(items)

    def integers(self, name: str, low: int = 0, high: int = 2**53, *, most: int = LIST_MAX) -> tuple[int, ...]:
        """Read a list of integers within bounds; absent is empty."""
        items = self._items(name, most)
        for index, item in enumerate(items):
            if type(item) is not int or not low <= item <= high:
                raise invalid(f"{self.place(name)}[{index}]", f"expected an integer from {low} to {high}")
        return tuple(items)

    def table(self, name: str, decode: Callable[[Fields], T], *, most: int = 64) -> dict[str, T]:
        """Read an object whose keys are free and whose values are objects; absent is empty."""
        value = self._left.pop(name, None)
        if value is None:
            return {}
        if not isinstance(value, dict) or (len(value) > most and self.strict):
            raise invalid(self.place(name), f"expected an object of at most {most} entries")
        return {
            key: Fields.read(item, f"{self.place(name)}.{key}", decode, strict=self.strict)
            for key, item in value.items()
        }

    def scalars(self, name: str, kinds: tuple[type, ...], *, most: int = 64) -> dict[str, Any]:
        """Read an object whose keys are free and whose values have one of the given JSON types; absent is empty."""
        value = self._left.pop(name, None)
        if value is None:
            return {}
        if not isinstance(value, dict) or (len(value) > most and self.strict):
            raise invalid(self.place(name), f"expected an object of at most {most} entries")
        for key, item in value.items():
            if type(item) not in kinds:
                raise invalid(f"{self.place(name)}.{key}", f"{_kind(item)} is not accepted here")
        return dict(value)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", int: "an integer", float: "a number"}
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    return names.get(type(value), type(value).__name__)
