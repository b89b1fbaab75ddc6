"""One option node per plug-in: its widgets are the plug-in's parameters, its output the frozen choice.

The id is ``Atelier`` + kind + file name, so that a new network, optimizer, objective or axis is one file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..core.discovery import discover_tolerant
from ..core.params import Choice
from ._changes import file_state
from .host import get_host
from .widgets import ROOT_CATEGORY, params_from, socket, widgets

ROOT = __package__.rpartition(".")[0]


def camel(name: str) -> str:
    """``cosine_with_restarts`` -> ``CosineWithRestarts``."""
    return "".join(word.capitalize() for word in name.split("_"))


def option_nodes(log: logging.Logger) -> list[type]:
    """Node classes of all plug-ins found; one that fails is logged and left out."""
    nodes: list[type] = []
    for kind, (folder, title, category) in KINDS.items():
        for name, plugin in discover_tolerant(f"{ROOT}.{folder}", kind.upper(), log).items():
            nodes.append(_choice_node(kind, name, plugin, title, category))
    for name, axis in discover_tolerant(f"{ROOT}.evaluator.axes", "AXIS", log).items():
        nodes.append(_axis_node(name, axis))
    return nodes


KINDS = {
    "network": ("networks", "{} Network (Atelier)", "Train"),
    "optimizer": ("trainer.optimizers", "{} Optimizer (Atelier)", "Train"),
    "objective": ("trainer.objectives", "{} Objective (Atelier)", "Train"),
}
"""Per kind: folder of the plug-ins, title, menu group."""

ALIASES = {
    "network": ["network", "lora", "lycoris", "rank", "dim", "alpha"],
    "optimizer": ["optimizer", "learning rate", "lr", "scheduler"],
    "objective": ["objective", "loss", "noise offset", "min snr", "v prediction"],
}


def _choice_node(kind: str, name: str, plugin: Any, title: str, category: str) -> type:
    """The node of a network, optimizer or objective."""

    def input_types(cls: type) -> dict[str, Any]:
        # Optional, though each has a default: a graph saved before a setting was added must go on running.
        return {"optional": widgets(plugin.params)}

    def choose(self: Any, **values: Any) -> tuple[Choice]:
        return (Choice(kind=kind, name=name, params=params_from(plugin.params, values)),)

    names = [parameter.name for parameter in plugin.params.parameters()]
    shown = plugin.title
    return type(
        f"{camel(kind)}{camel(name)}",
        (),
        {
            "__doc__": plugin.summary,
            "ID": f"Atelier{camel(kind)}{camel(name)}",
            "TITLE": title.format(shown),
            "CATEGORY": f"{ROOT_CATEGORY}/{category}",
            "DESCRIPTION": _sentence(plugin.summary),
            "SEARCH_ALIASES": ALIASES[kind],
            "INPUT_TYPES": classmethod(input_types),
            "RETURN_TYPES": (f"ATELIER_{kind.upper()}",),
            "RETURN_NAMES": (kind,),
            "OUTPUT_TOOLTIPS": (f"The {kind} and its settings, for the node 'Train LoRA'.",),
            "FUNCTION": "choose",
            "choose": _with_names(choose, names),
        },
    )


def _axis_node(name: str, axis: Any) -> type:
    """The node of a grid axis."""
    kinds = {wire.name: wire for wire in axis.sockets}

    def input_types(cls: type) -> dict[str, Any]:
        if not axis.sockets:
            return {"optional": widgets(axis.params)}  # as above
        types: dict[str, Any] = {"required": widgets(axis.params), "optional": {}}
        for wire in axis.sockets:
            types["required" if wire.required else "optional"][wire.name] = socket(wire.kind, _sentence(wire.doc))
        return types

    def make(self: Any, **values: Any) -> tuple[Any]:
        inputs = {key: value for key, value in values.items() if key in kinds}
        return (axis.build(params_from(axis.params, values), axis_context(inputs)),)

    def is_changed(cls: type, **values: Any) -> str:
        return _files_state(axis, values)

    names = [*(parameter.name for parameter in axis.params.parameters()), *kinds]
    attributes: dict[str, Any] = {
        "__doc__": axis.summary,
        "ID": f"AtelierAxis{camel(name)}",
        "TITLE": f"Axis: {axis.name} (Atelier)",
        "CATEGORY": f"{ROOT_CATEGORY}/Compare",
        "DESCRIPTION": _sentence(axis.summary),
        "SEARCH_ALIASES": ["xy plot", "xyz plot", "grid axis", axis.name],
        "INPUT_TYPES": classmethod(input_types),
        "RETURN_TYPES": ("ATELIER_AXIS",),
        "RETURN_NAMES": ("axis",),
        "OUTPUT_TOOLTIPS": ("The columns or rows of a grid; connect it to x or y of 'XY Grid'.",),
        "FUNCTION": "make",
        "make": _with_names(make, names),
    }
    if any(parameter.name == "files" for parameter in axis.params.parameters()):
        attributes["IS_CHANGED"] = classmethod(is_changed)
    return type(f"Axis{camel(name)}", (), attributes)


def axis_context(inputs: dict[str, Any]) -> Any:
    """What the host gives to an axis: names of LoRAs, samplers and presets, and how a LoRA or a run is opened."""
    from ..evaluator.axes._spec import AxisContext
    from ..merger.lora.forms import vector_blocks
    from ..merger.lora.handle import open_lora
    from ..merger.lora.presets import load_presets

    host = get_host()
    return AxisContext(
        inputs=inputs,
        lora_names=host.lora_names,
        open_lora=lambda lora_name: open_lora(host.lora_path(lora_name), lora_name),
        open_lora_file=lambda path, shown: open_lora(path, shown),
        run_checkpoints=_run_checkpoints,
        sampler_names=host.samplers(),
        scheduler_names=host.schedulers(),
        preset_names=lambda: list(load_presets(host.user_dir())),
        vector_blocks=vector_blocks,
    )


def _run_checkpoints(run: Any) -> list[tuple[int, Path]]:
    from ..trainer.run import open_run

    return [(step, Path(path)) for step, path in open_run(run.folder).checkpoints]


def _files_state(axis: Any, values: dict[str, Any]) -> str:
    """Sizes and times of the LoRA files an axis names, so that a file written anew is seen."""
    from ..core.errors import AtelierError
    from ..evaluator.axes.lora import matching_names
    from ..evaluator.values import split_list

    host = get_host()
    try:
        names = matching_names(split_list(str(values.get("files") or ""), what=axis.name), host.lora_names())
        return " ".join(file_state(host.lora_path(name)) for name in names)
    except AtelierError as refusal:
        return str(refusal)  # the same refusal comes when the node runs


def _sentence(doc: str) -> str:
    return doc if doc.endswith(".") else f"{doc}."


def _with_names(function: Callable[..., Any], names: list[str]) -> Callable[..., Any]:
    """Give a ``**values`` function the signature of its inputs, which tools (and our tests) read."""
    import inspect

    parameters: Iterator[inspect.Parameter] = (
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in names
    )
    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    function.__signature__ = inspect.Signature([this, *parameters])  # type: ignore[attr-defined]
    return function
