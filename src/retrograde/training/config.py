"""The configuration of a run: the fields of one dataclass make the flags, read the file and word the errors."""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, get_type_hints


class InputError(ValueError):
    """Bad input from the command line or from a file; the message says which, what was expected, and what came."""


def option(default: Any, help: str, low: float = -math.inf, high: float = math.inf) -> Any:
    """A field of a configuration: its default, what it does, and the range it must lie in."""
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "high": high})


@dataclass(frozen=True)
class Config:
    """What every task can be told. A task's own options are in its subclass.

    Raises:
        InputError: a value of the wrong type, or out of its range.
    """

    task: ClassVar[str]

    seed: int = option(0, "Seed of every random number.", low=0, high=2**31 - 1)
    epochs: int = option(20, "How often to go through the training data.", low=1)
    batch: int = option(64, "Samples in a batch.", low=1)
    rate: float = option(0.002, "Learning rate of Adam.", low=0, high=1)
    decay: float = option(0.9, "Factor on the learning rate after each epoch.", low=0, high=1)

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            object.__setattr__(self, name, self._checked(name, value))

    @classmethod
    def types(cls) -> dict[str, type]:
        """The type of each option: int, float, bool, str or Path."""
        hints = get_type_hints(cls)
        return {field.name: _plain(hints[field.name]) for field in dataclasses.fields(cls)}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str = "") -> Self:
        """The configuration with these values, and defaults for the rest; a "task" among them must be this one.

        Raises:
            InputError: a key that is no option, or a wrong value. ``where`` says whence it came.
        """
        values = dict(values)
        try:
            if (task := values.pop("task", cls.task)) != cls.task:
                raise InputError(f'task: expected "{cls.task}", got {task!r}')
            for key in values:
                if key not in cls.types():
                    raise InputError(f"{key}: no such option; expected one of {', '.join(cls.types())}")
            return cls(**values)
        except InputError as error:
            raise InputError(f"{where}: {error}" if where else str(error)) from None

    def to_toml(self) -> str:
        """The whole configuration as TOML; what is None is left out."""
        values = {"task": self.task, **{key: value for key, value in self.as_dict().items() if value is not None}}
        return "".join(f"{key} = {_toml(value)}\n" for key, value in values.items())

    def as_dict(self) -> dict[str, Any]:
        """Each option and its value."""
        return dataclasses.asdict(self)

    def _checked(self, name: str, value: Any) -> Any:
        kind, limits = self.types()[name], self.__dataclass_fields__[name].metadata
        if value is None and self.__dataclass_fields__[name].default is None:
            return None
        if kind is Path and isinstance(value, str | Path):
            return Path(value)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not kind:
            raise InputError(f"{name}: expected {_KINDS[kind]}, got {value!r}")
        if kind in (int, float) and not limits["low"] <= value <= limits["high"]:
            raise InputError(f"{name}: expected {_KINDS[kind]} {_range(limits)}, got {value}")
        return value


_KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "a string", Path: "a path"}


def _plain(hint: Any) -> type:
    """The type in `T | None`, or the type itself."""
    return next(kind for kind in (*getattr(hint, "__args__", ()), hint) if kind is not type(None))


def _range(limits: Mapping[str, float]) -> str:
    low, high = limits["low"], limits["high"]
    return f"of at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    # A JSON string is a TOML string, but for DEL, which TOML wants escaped.
    return (
        repr(value)
        if isinstance(value, int | float)
        else json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    )


def read_toml(path: Path) -> dict[str, Any]:
    """The file's keys and values.

    Raises:
        InputError: not a file that can be read, or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not TOML: {error}") from None


def read_config(cls: type[Config], path: Path, **flags: Any) -> Config:
    """The configuration in a TOML file; flags win. A path in the file is taken from the file's own folder.

    Raises:
        InputError: see `read_toml` and `Config.from_mapping`.
    """
    values = read_toml(path)
    config = cls.from_mapping(values, where=str(path))
    own: dict[str, Any] = {
        key: path.parent / value for key, value in config.as_dict().items() if isinstance(value, Path) and key in values
    }
    return dataclasses.replace(config, **(own | flags))
