"""Loads the tree under its stable import name, whatever its folder is called, without an installation.

Tests import the pack as ``lora_atelier`` and what they share as ``atelier_tests.helpers...``. The root folder must
not be on ``sys.path``: a bare ``import nodes`` would then find ours instead of ComfyUI's.
"""

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMPORT_NAMES = {"lora_atelier": ROOT / "__init__.py", "atelier_tests": ROOT / "tests" / "__init__.py"}


def load_under_name(name: str, init_file: Path) -> None:
    """Imports a package from its file under a name of our choice; the own tree wins over an installed copy."""
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, init_file, submodule_search_locations=[str(init_file.parent)])
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    spec.loader.exec_module(package)


sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The models of the tests are tiny: threads cost them more than they give, and more still beside a second process.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
for _name, _init_file in IMPORT_NAMES.items():
    load_under_name(_name, _init_file)
