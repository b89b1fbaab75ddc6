"""The nodes: every file of this folder exports ``NODES``, and every plug-in with options gets a node of its own.

A file that fails is logged with its traceback and left out, so that one broken node does not take the others along.
"""

from __future__ import annotations

import logging

from ..core.discovery import discover_tolerant

log = logging.getLogger("lora_atelier")


def _all_nodes() -> list[type]:
    from . import _options

    files = discover_tolerant(__name__, "NODES", log)
    found = [node for nodes in files.values() for node in nodes]
    return [*found, *_options.option_nodes(log)]


_nodes = _all_nodes()

NODE_CLASS_MAPPINGS: dict[str, type] = {node.ID: node for node in _nodes}  # type: ignore[attr-defined]
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {node.ID: node.TITLE for node in _nodes}  # type: ignore[attr-defined]
