"""Loads the tree under its stable import name, whatever its folder is called, without an installation."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if "lora_atelier" not in sys.modules:
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    _spec = importlib.util.spec_from_file_location(
        "lora_atelier", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert _spec is not None
    assert _spec.loader is not None
    _package = importlib.util.module_from_spec(_spec)
    sys.modules["lora_atelier"] = _package
    _spec.loader.exec_module(_package)
