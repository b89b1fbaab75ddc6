"""Widgets from documented parameters: ranges, steps, tooltips and defaults are written once, in the dataclass."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from ..core.params import Parameter, Params

SomeParams = TypeVar("SomeParams", bound=Params)

WIDGET_TYPES: Mapping[type, str] = {bool: "BOOLEAN", int: "INT", float: "FLOAT", str: "STRING"}
STEPS: Mapping[type, float] = {int: 1, float: 0.01}
"""One click of a number field whose parameter names no step."""
ROOT_CATEGORY = "Atelier"


def widget(parameter: Parameter, *, advanced: bool | None = None) -> tuple[Any, dict[str, Any]]:
    """The ``INPUT_TYPES`` entry of one parameter: (type or list of choices, options)."""
    options: dict[str, Any] = {"default": parameter.default, "tooltip": _tooltip(parameter)}
    if parameter.advanced if advanced is None else advanced:
        options["advanced"] = True
    if parameter.choices is not None:
        return list(parameter.choices), options
    if parameter.type in (int, float):
        bounds = {"min": parameter.minimum, "max": parameter.maximum, "step": parameter.step or STEPS[parameter.type]}
        options.update({name: parameter.type(value) for name, value in bounds.items() if value is not None})
    if parameter.type is float:
        options["round"] = False  # else the page rounds what is typed to a multiple of the step
    if parameter.type is str:
        options["multiline"] = parameter.multiline
    if parameter.name == "seed":
        # Without this the page puts a new seed in after every run, and the next Queue starts everything anew.
        options["control_after_generate"] = False
    return WIDGET_TYPES[parameter.type], options


def widgets(params: type[Params], *, shown: Collection[str] | None = None) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Entries of all parameters in their order.

    Args:
        params: The parameter class.
        shown: Names of those that are not folded away; by default the parameters say it themselves.
    """
    return {
        parameter.name: widget(parameter, advanced=None if shown is None else parameter.name not in shown)
        for parameter in params.parameters()
    }


def split_widgets(
    params: type[Params], later: Collection[str], *, shown: Collection[str] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same entries in two: those of a node's first version, and those that came later.

    The later ones belong behind all older inputs and among the optional ones: ComfyUI refuses a graph in the API format
    that lacks a required input, which every graph saved before would.
    """
    entries = widgets(params, shown=shown)
    return (
        {name: entry for name, entry in entries.items() if name not in later},
        {name: entry for name, entry in entries.items() if name in later},
    )


def params_from(params: type[SomeParams], values: Mapping[str, Any]) -> SomeParams:
    """The parameters out of a node's arguments; what is missing takes its default, what is not a parameter is left.

    Raises:
        InputError: A value is refused.
    """
    names = {parameter.name for parameter in params.parameters()}
    return params(**{name: value for name, value in values.items() if name in names})


def combo(names: list[str], tooltip: str, *, default: str | None = None) -> tuple[list[str], dict[str, Any]]:
    """A list of names to choose from."""
    options: dict[str, Any] = {"tooltip": tooltip}
    if default is not None and default in names:
        options["default"] = default
    return names, options


def socket(kind: str, tooltip: str) -> tuple[str, dict[str, Any]]:
    """An input that is only wired."""
    return kind, {"tooltip": tooltip}


def text(tooltip: str, *, default: str = "", multiline: bool = False, **options: Any) -> tuple[str, dict[str, Any]]:
    """A field for text."""
    return "STRING", {"default": default, "multiline": multiline, "tooltip": tooltip, **options}


def number(
    kind: str, default: float, minimum: float, maximum: float, step: float, tooltip: str, **options: Any
) -> tuple[str, dict[str, Any]]:
    """A field for a number; kind is INT or FLOAT."""
    if kind == "FLOAT":
        options = {"round": False, **options}
    return kind, {"default": default, "min": minimum, "max": maximum, "step": step, "tooltip": tooltip, **options}


def seed(tooltip: str, *, default: int = 0) -> tuple[str, dict[str, Any]]:
    """A seed that the page leaves alone; its result is kept on disk."""
    return number("INT", default, 0, 2**53, 1, tooltip, control_after_generate=False)


def _tooltip(parameter: Parameter) -> str:
    doc = parameter.doc.strip()
    return doc if doc.endswith((".", "?", "!", ")")) else f"{doc}."


NODES: tuple[type, ...] = ()
"""No node of its own; the folder's discovery asks every file."""
