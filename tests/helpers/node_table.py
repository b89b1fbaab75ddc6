"""The node classes as one plain table, made in a child that loads the pack as ComfyUI does.

The child hides ComfyUI and every library that must only be imported on use, so that a table at all proves that the
pack loads without them. It runs in an empty folder, so that lists of files hold only what is built in.
"""

import json
from pathlib import Path
from typing import Any

from .child import ROOT, run_child

HIDDEN = (
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "diffusers",
    "execution",
    "folder_paths",
    "matplotlib",
    "nodes",
    "onnxruntime",
    "pytorch_optimizer",
    "server",
    "transformers",
)
MODULE_NAME = "custom_nodes/My-Lora_x_Pack"
"""What ComfyUI calls the module of a folder ``My-Lora.Pack``: its path, dots replaced."""

_CODE = """
import importlib.abc, importlib.util, inspect, json, logging, sys
root, module_name, hidden = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
for name in [name for name in sys.modules if name.split(".")[0] in ("lora_atelier", "atelier_tests")]:
    del sys.modules[name]

class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden:
            raise ImportError(f"{name} is hidden by the test")

sys.meta_path.insert(0, Hide())
messages = []
class Keep(logging.Handler):
    def emit(self, record):
        messages.append(self.format(record))
logging.getLogger().addHandler(Keep(logging.WARNING))

spec = importlib.util.spec_from_file_location(module_name, root + "/__init__.py", submodule_search_locations=[root])
module = importlib.util.module_from_spec(spec)
sys.modules[module_name] = module
spec.loader.exec_module(module)
light = not any(name in sys.modules for name in ("torch", "numpy", "PIL", module_name + ".nodes"))

def signature(function):
    parameters = inspect.signature(function).parameters.values()
    return {
        "names": [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)],
        "rest": any(p.kind is p.VAR_KEYWORD for p in parameters),
    }

def describe(node):
    optional = [name for name in ("IS_CHANGED", "VALIDATE_INPUTS") if hasattr(node, name)]
    return {
        "id": node.ID, "title": node.TITLE, "category": node.CATEGORY, "description": node.DESCRIPTION,
        "aliases": list(getattr(node, "SEARCH_ALIASES", [])),
        "function": node.FUNCTION, "signature": signature(getattr(node, node.FUNCTION)),
        "hooks": {name: signature(getattr(node, name)) for name in optional},
        "inputs": {section: [[name, entry] for name, entry in inputs.items()]
                   for section, inputs in node.INPUT_TYPES().items()},
        "outputs": list(node.RETURN_TYPES), "output_names": list(getattr(node, "RETURN_NAMES", node.RETURN_TYPES)),
        "output_tooltips": list(getattr(node, "OUTPUT_TOOLTIPS", [])),
        "output_node": getattr(node, "OUTPUT_NODE", False),
    }

found = hasattr(module, "NODE_CLASS_MAPPINGS") and hasattr(module, "NODE_DISPLAY_NAME_MAPPINGS")
nodes = dict(module.NODE_CLASS_MAPPINGS)
print("TABLE" + json.dumps({
    "light": light, "found": found, "messages": messages, "web": module.WEB_DIRECTORY,
    "loaded": sorted({name.split(".")[0] for name in sys.modules} & set(hidden)),
    "titles": dict(module.NODE_DISPLAY_NAME_MAPPINGS),
    "nodes": {name: describe(node) for name, node in sorted(nodes.items())},
}, allow_nan=False))
"""


def load_node_table(folder: Path, module_name: str = MODULE_NAME) -> dict[str, Any]:
    """Loads the pack in a child that runs in the given empty folder and returns what it found."""
    output = run_child(_CODE, str(ROOT), module_name, json.dumps(HIDDEN), cwd=folder)
    table: dict[str, Any] = json.loads(output.rpartition("TABLE")[2])
    return table


def is_combo(kind: Any) -> bool:
    return isinstance(kind, list)


def flat_inputs(node: dict[str, Any]) -> list[tuple[str, Any, dict[str, Any]]]:
    """Name, type and options of every input that the page shows, in the order of its widgets."""
    rows = [row for section in ("required", "optional") for row in node["inputs"].get(section, [])]
    return [(name, entry[0], entry[1] if len(entry) > 1 else {}) for name, entry in rows]
