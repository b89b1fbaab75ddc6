"""One node per merge method, made from its file: models in, a merge out; nothing is read before it is saved."""

from __future__ import annotations

import logging
from typing import Any

from ..core.discovery import discover_tolerant
from ..merger.expression import Merge
from ..merger.handle import MergeHandle
from ..merger.methods._spec import MAX_MODELS, Input, Method
from ..merger.shares import share_report
from ._merge import BLOCKS, MERGE, MODEL_KINDS, node_of
from ._options import ROOT, camel
from .widgets import ROOT_CATEGORY, params_from, socket, widgets

log = logging.getLogger("lora_atelier")

ALIASES = {
    "weighted_sum": ["checkpoint merger", "ModelMergeSimple", "mbw", "supermerger"],
    "add_difference": ["task arithmetic", "ModelMergeAdd"],
    "n_average": ["model soup", "mean of models"],
    "dare": ["supermario", "DareMerge"],
    "difference": ["subtract", "task vector", "ModelMergeSubtract"],
}
"""Further words by which a method's node is found."""


def places_of(method: Method) -> list[tuple[str, Input, bool]]:
    """Name, description and necessity of every socket, in the order of the method's inputs."""
    fixed = [(place.name, place, not place.optional) for place in method.inputs]
    if method.many is None:
        return fixed
    numbered = [
        (f"{method.many.name}_{number}", method.many, number <= method.min_many) for number in range(1, MAX_MODELS + 1)
    ]
    return [*fixed, *numbered]


def merge_node(name: str, method: Method) -> type:
    """The node class of a method."""
    places = places_of(method)

    def input_types(cls: type) -> dict[str, Any]:
        sockets = {key: (socket(MODEL_KINDS, _sentence(place.doc)), needed) for key, place, needed in places}
        optional = {key: entry for key, (entry, needed) in sockets.items() if not needed}
        for parameter in method.blocks:
            optional[_weights_name(parameter, method)] = socket(
                BLOCKS, f"Block weights in the place of {parameter}, from 'Merge Block Weights'. 0 keeps A, 1 is all B."
            )
        return {
            "required": {key: entry for key, (entry, needed) in sockets.items() if needed},
            "optional": {**optional, **widgets(method.params)},
        }

    def merge(self: Any, **values: Any) -> tuple[MergeHandle, str]:
        given = [None if values.get(key) is None else node_of(values[key], key) for key, _, _ in places]
        count = len(method.inputs)
        inputs = (*given[:count], *(node for node in given[count:] if node is not None))
        weights = tuple(
            (parameter, values[_weights_name(parameter, method)])
            for parameter in method.blocks
            if values.get(_weights_name(parameter, method)) is not None
        )
        node = Merge(method=name, inputs=inputs, params=params_from(method.params, values), weights=weights)
        return MergeHandle(node=node), "\n".join(share_report(node))

    kept = " Block weights and several of these nodes in a row become one pass over the files." if method.blocks else ""
    return type(
        f"Merge{camel(name)}",
        (),
        {
            "__doc__": method.summary,
            "ID": f"AtelierMerge{camel(name)}",
            "TITLE": f"Merge: {method.title} (Atelier)",
            "CATEGORY": f"{ROOT_CATEGORY}/Merge",
            "DESCRIPTION": f"{_sentence(method.summary)}{kept}",
            "SEARCH_ALIASES": ["merge", "checkpoint merge", name.replace("_", " "), *ALIASES.get(name, [])],
            "INPUT_TYPES": classmethod(input_types),
            "RETURN_TYPES": (MERGE, "STRING"),
            "RETURN_NAMES": ("merge", "shares"),
            "OUTPUT_TOOLTIPS": (
                "What is to be merged; nothing is read yet. Connect it to another merge or to 'Save Merge'.",
                "The effective share of every model, and a warning where a chain of differences goes too far.",
            ),
            "FUNCTION": "merge",
            "merge": merge,
        },
    )


def _weights_name(parameter: str, method: Method) -> str:
    return "weights" if parameter == method.blocks[0] else f"weights_{parameter}"


def _sentence(doc: str) -> str:
    text = f"{doc[0].upper()}{doc[1:]}"
    return text if text.endswith(".") else f"{text}."


NODES = tuple(
    merge_node(name, method) for name, method in discover_tolerant(f"{ROOT}.merger.methods", "METHOD", log).items()
)
