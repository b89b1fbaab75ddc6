"""LoRA Atelier: data sets, tags, LoRA training, block weights, merging and comparison grids as ComfyUI nodes.

Importing this package imports nothing else. The node mappings are built on first use, so that the package can be
imported without ComfyUI, diffusers or torch, and a failure to build them is an ImportError that names its cause
(ComfyUI looks the mappings up with ``hasattr``, which would swallow an AttributeError).
"""

from typing import Any

__version__ = "0.1.0"

WEB_DIRECTORY = "./web"

_LAZY_NAMES = ("NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS")


def __getattr__(name: str) -> Any:
    if name not in _LAZY_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _stand_in_for_dotted_name()
    try:
        from . import nodes
    except Exception as cause:
        raise ImportError(f"LoRA Atelier could not load its nodes: {type(cause).__name__}: {cause}") from cause
    for lazy_name in _LAZY_NAMES:
        globals()[lazy_name] = getattr(nodes, lazy_name)
    return globals()[name]


def _stand_in_for_dotted_name() -> None:
    # A folder called My-Lora.Pack may be loaded under that very name. Python then takes what stands before the dot
    # for a package and asks for it when a room is imported; today's ComfyUI replaces the dots, other loaders do not.
    import sys

    sys.modules.setdefault(__name__.partition(".")[0], sys.modules[__name__])
