"""What a node class takes and gives, read from its class or from a server's ``/object_info``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
"""Types whose value is typed into the node rather than wired."""


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """One input of a node.

    Attributes:
        name: key in the API format.
        type: type name, "COMBO" for a list of choices; "*" takes anything.
        choices: allowed values of a combo, else None.
        options: the option dictionary (default, min, max, forceInput ...).
        required: whether the graph must give it.
    """

    name: str
    type: str
    choices: tuple[Any, ...] | None
    options: Mapping[str, Any]
    required: bool

    @property
    def is_widget(self) -> bool:
        """True when the page shows a field for it, so that it has a place in ``widgets_values``."""
        return self.type in WIDGET_TYPES and not self.options.get("forceInput")


@dataclass(frozen=True, kw_only=True)
class NodeSpec:
    """The interface of one node class.

    Attributes:
        class_type: key in the node mappings.
        title: default title of a node of this class.
        inputs: by name, required ones first, in the order of the page.
        hidden: hidden inputs, name to kind ("PROMPT", "UNIQUE_ID" ...).
        outputs: type name of each output.
        is_output: whether it is a root of execution.
    """

    class_type: str
    title: str
    inputs: Mapping[str, InputSpec]
    hidden: Mapping[str, str]
    outputs: tuple[str, ...]
    is_output: bool


def spec_of_class(class_type: str, node_class: type, title: str) -> NodeSpec:
    """Read the interface of a V1 node class."""
    declared: Mapping[str, Any] = node_class.INPUT_TYPES()  # type: ignore[attr-defined]
    return NodeSpec(
        class_type=class_type,
        title=title,
        inputs=_inputs(declared),
        hidden=dict(declared.get("hidden", {})),
        outputs=tuple(_type_name(output) for output in getattr(node_class, "RETURN_TYPES", ())),
        is_output=bool(getattr(node_class, "OUTPUT_NODE", False)),
    )


def specs_of_classes(classes: Mapping[str, type], titles: Mapping[str, str]) -> dict[str, NodeSpec]:
    """Interfaces of all classes of a mapping."""
    return {name: spec_of_class(name, node_class, titles.get(name, name)) for name, node_class in classes.items()}


def specs_of_object_info(object_info: Mapping[str, Any]) -> dict[str, NodeSpec]:
    """Interfaces of all nodes of a server's ``GET /object_info``."""
    specs = {}
    for class_type, info in object_info.items():
        declared = info.get("input") or {}
        specs[class_type] = NodeSpec(
            class_type=class_type,
            title=str(info.get("display_name") or class_type),
            inputs=_inputs(declared),
            hidden=dict(declared.get("hidden") or {}),
            outputs=tuple(_type_name(output) for output in info.get("output") or ()),
            is_output=bool(info.get("output_node")),
        )
    return specs


def _inputs(declared: Mapping[str, Any]) -> dict[str, InputSpec]:
    inputs: dict[str, InputSpec] = {}
    for part in ("required", "optional"):
        for name, entry in (declared.get(part) or {}).items():
            kind = entry[0]
            options: Mapping[str, Any] = entry[1] if len(entry) > 1 and isinstance(entry[1], Mapping) else {}
            choices: tuple[Any, ...] | None = None
            if isinstance(kind, (list, tuple)):
                choices = tuple(kind)
            elif kind == "COMBO" and isinstance(options.get("options"), (list, tuple)):
                choices = tuple(options["options"])
            inputs[name] = InputSpec(
                name=name, type=_type_name(kind), choices=choices, options=options, required=part == "required"
            )
    return inputs


def _type_name(kind: Any) -> str:
    return "COMBO" if isinstance(kind, (list, tuple)) else str(kind)


def types_fit(given: str, wanted: str) -> bool:
    """Whether an output type may be wired to an input type; "A,B" is a union and "*" anything."""
    if "*" in (given, wanted):
        return True
    return bool({part.strip() for part in given.split(",")} & {part.strip() for part in wanted.split(",")})
