"""Documented parameters: frozen dataclasses whose fields carry their meaning, unit, range and choices.

One definition serves every surface: validation, JSON, the node's widgets, the help pages.
"""

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from .errors import AtelierError, InputError, unknown_name

Scalar = bool | int | float | str
Choices = Sequence[Scalar] | Callable[[], Sequence[Scalar]]

_SomeParams = TypeVar("_SomeParams", bound="Params")
_METADATA_KEY = "atelier"
_SCALAR_TYPES: tuple[type, ...] = (bool, int, float, str)
_TYPE_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One documented field of a :class:`Params` class.

    Attributes:
        name: The field's name.
        type: ``bool``, ``int``, ``float`` or ``str``.
        default: The value when nothing is given.
        doc: What it does, in one or two sentences; becomes the tooltip.
        unit: Unit for messages and help, e.g. ``"px"``; empty when it has none.
        minimum: Smallest allowed value, inclusive.
        maximum: Largest allowed value, inclusive.
        step: How far one click in the widget goes; values in between are allowed.
        choices: The allowed values, resolved at the moment of asking; None when free.
        advanced: Shown only when the person asks for more.
        multiline: A text that may have several lines.
    """

    name: str
    type: type
    default: Any
    doc: str
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    choices: tuple[Scalar, ...] | None = None
    advanced: bool = False
    multiline: bool = False


def param(
    default: Any,
    *,
    doc: str,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    step: float | None = None,
    choices: Choices | None = None,
    advanced: bool = False,
    multiline: bool = False,
) -> Any:
    """Declares a documented field of a :class:`Params` class; see :class:`Parameter` for the arguments.

    ``choices`` may be a function without arguments for lists that depend on the disk; it is called at use.
    """
    details = {
        "doc": doc,
        "unit": unit,
        "minimum": minimum,
        "maximum": maximum,
        "step": step,
        "choices": choices,
        "advanced": advanced,
        "multiline": multiline,
    }
    return dataclasses.field(default=default, metadata={_METADATA_KEY: details})


def same_as(params: "type[Params]", name: str) -> Any:
    """Declares a field with the meaning, range and default of another class's: a setting that two rooms take alike."""
    (field,) = (field for field in dataclasses.fields(params) if field.name == name)
    return dataclasses.field(default=field.default, metadata=field.metadata)


@dataclass(frozen=True, kw_only=True)
class Params:
    """Base of every parameter class: ``@dataclass(frozen=True, kw_only=True)`` with fields made by :func:`param`.

    Values are checked when the object is built. A subclass with rules across fields defines ``__post_init__``,
    calls ``super().__post_init__()`` first and raises :class:`InputError` for what it refuses.
    """

    _cached_types: ClassVar[dict[type, dict[str, type]]] = {}

    def __post_init__(self) -> None:
        """Checks type, finiteness, range and choices of every field; whole numbers given for floats are converted.

        Raises:
            InputError: A value is refused; the field, the value and what is allowed are named.
        """
        for parameter in self.parameters():
            given = getattr(self, parameter.name)
            value = check_value(parameter, given)
            if value is not given:
                object.__setattr__(self, parameter.name, value)

    def to_json(self) -> dict[str, Any]:
        """Returns every field as plain JSON values, in the order of declaration."""
        return {parameter.name: getattr(self, parameter.name) for parameter in self.parameters()}

    @classmethod
    def from_json(cls: type[_SomeParams], data: Mapping[str, Any]) -> _SomeParams:
        """Builds the parameters from JSON values; what is missing takes its default.

        Raises:
            InputError: A value is refused.
            UnknownNameError: A key is not a field; the nearest fields are named.
        """
        if not isinstance(data, Mapping):
            raise InputError(f"the parameters of {cls.__name__} must be a JSON object, not {_shown(data)}")
        names = [field.name for field in dataclasses.fields(cls)]
        for key in data:
            if key not in names:
                raise unknown_name(f"parameter of {cls.__name__}", str(key), names)
        return cls(**data)

    @classmethod
    def parameters(cls) -> tuple[Parameter, ...]:
        """Returns the documented fields in the order of declaration.

        Raises:
            AtelierError: A field was not declared with :func:`param`, or has a type other than bool, int, float, str.
        """
        types = cls._field_types()
        return tuple(_parameter_of(cls, field, types[field.name]) for field in dataclasses.fields(cls))

    @classmethod
    def _field_types(cls) -> dict[str, type]:
        if cls not in Params._cached_types:
            Params._cached_types[cls] = typing.get_type_hints(cls)
        return Params._cached_types[cls]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One plug-in chosen with its parameters: the object on a wire of options.

    Attributes:
        kind: What is chosen, e.g. ``"network"``.
        name: Key of the plug-in, which is its file's name.
        params: Its parameters.
    """

    kind: str
    name: str
    params: Params

    def to_json(self) -> dict[str, Any]:
        """Returns ``{"kind", "name", "params"}`` as plain JSON values."""
        return {"kind": self.kind, "name": self.name, "params": self.params.to_json()}


def choice_from_json(data: Mapping[str, Any], plugins: Mapping[str, Any]) -> Choice:
    """Rebuilds a choice from :meth:`Choice.to_json`.

    Args:
        data: The JSON object.
        plugins: The plug-ins of this kind by name; each has ``.params``, its :class:`Params` class.

    Raises:
        InputError: The object is malformed or a value is refused.
        UnknownNameError: The plug-in or a parameter is not known.
    """
    if not isinstance(data, Mapping) or not {"kind", "name"} <= set(data):
        raise InputError(f"a choice needs the keys 'kind', 'name' and 'params', given was {_shown(data)}")
    for key in data:
        if key not in ("kind", "name", "params"):
            raise unknown_name("key of a choice", str(key), ("kind", "name", "params"))
    kind, name = str(data["kind"]), str(data["name"])
    if name not in plugins:
        raise unknown_name(kind, name, plugins)
    return Choice(kind=kind, name=name, params=plugins[name].params.from_json(data.get("params", {})))


def check_value(parameter: Parameter, value: Any) -> Any:
    """Returns the value in the parameter's own type, or refuses it.

    Raises:
        InputError: Wrong type, not finite, out of range, or not among the choices.
    """
    value = _typed(parameter, value)
    if parameter.choices is not None and value not in parameter.choices:
        raise unknown_name(f"value of {parameter.name}", str(value), [str(choice) for choice in parameter.choices])
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        too_small = parameter.minimum is not None and value < parameter.minimum
        too_large = parameter.maximum is not None and value > parameter.maximum
        if too_small or too_large:
            raise InputError(f"{parameter.name} is {_shown(value)}, allowed is {_range_words(parameter)}")
    return value


def _typed(parameter: Parameter, value: Any) -> Any:
    # bool is an int in Python; a person who gives true for a number has wired the wrong thing.
    if parameter.type is float and type(value) is int:
        value = float(value) if abs(value) < 2**1000 else math.inf
    if type(value) is not parameter.type:
        if isinstance(value, parameter.type) and parameter.type is not int:
            value = parameter.type(value)  # a subclass, e.g. an enumeration or numpy.float64
        else:
            raise InputError(
                f"{parameter.name} is {_shown(value)}, allowed is {_TYPE_WORDS[parameter.type]}"
                + (f", {_range_words(parameter)}" if parameter.minimum is not None else "")
            )
    if parameter.type is float and not math.isfinite(value):
        raise InputError(f"{parameter.name} is {value}, allowed is a finite number, {_range_words(parameter)}")
    if parameter.type is str:
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as cause:
            raise InputError(f"{parameter.name} holds a character that no file can hold; type it anew") from cause
    return value


def _parameter_of(cls: type, field: "dataclasses.Field[Any]", field_type: Any) -> Parameter:
    details = field.metadata.get(_METADATA_KEY)
    if details is None:
        raise AtelierError(f"the field {cls.__name__}.{field.name} is not documented; declare it with param(...)")
    if field_type not in _SCALAR_TYPES:
        raise AtelierError(f"the field {cls.__name__}.{field.name} must be bool, int, float or str, not {field_type}")
    choices = details["choices"]
    if callable(choices):
        choices = choices()
    resolved = dict(details, choices=None if choices is None else tuple(choices))
    return Parameter(name=field.name, type=field_type, default=field.default, **resolved)


def _range_words(parameter: Parameter) -> str:
    low, high = parameter.minimum, parameter.maximum
    unit = f" {parameter.unit}" if parameter.unit else ""
    if low is not None and high is not None:
        return f"{low:g} to {high:g}{unit}" if max(abs(low), abs(high)) < 1e6 else f"{low} to {high}{unit}"
    if low is not None:
        return f"at least {low:g}{unit}"
    if high is not None:
        return f"at most {high:g}{unit}"
    return f"any value{unit}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
