"""Finding plug-ins: a folder is walked, each module gives its one export, the file name is the key."""

import importlib
import logging
import pkgutil
from typing import Any

from .errors import AtelierError


def module_names(package: str) -> list[str]:
    """Returns the names of the plug-in files of a package, sorted; ``_`` files and sub-packages are left out.

    Args:
        package: Full dotted name of the package, e.g. ``f"{__package__}.optimizers"``.
    """
    folder = importlib.import_module(package)
    return sorted(
        info.name for info in pkgutil.iter_modules(folder.__path__) if not info.name.startswith("_") and not info.ispkg
    )


def discover(package: str, export: str) -> dict[str, Any]:
    """Imports every plug-in of a package and returns its export by file name, sorted by file name.

    Args:
        package: Full dotted name of the package, e.g. ``f"{__package__}.optimizers"``.
        export: The fixed name each file exports, e.g. ``"OPTIMIZER"``.

    Raises:
        AtelierError: A file lacks the export; the file is named.
    """
    return {name: _load(package, name, export) for name in module_names(package)}


def discover_tolerant(package: str, export: str, log: logging.Logger) -> dict[str, Any]:
    """As :func:`discover`, but a file that fails is logged with its traceback and left out.

    For node files only: one broken node must not take the others with it.
    """
    found: dict[str, Any] = {}
    for name in module_names(package):
        try:
            found[name] = _load(package, name, export)
        except Exception:  # noqa: BLE001 -- whatever it is, it is logged in full and the other nodes go on
            log.exception("LoRA Atelier leaves out %s.py, which could not be loaded", name)
    return found


def _load(package: str, name: str, export: str) -> Any:
    module = importlib.import_module(f"{package}.{name}")
    if not hasattr(module, export):
        raise AtelierError(
            f"the file {module.__file__} exports no {export}; define {export}, or put a '_' before the file's name "
            "if it is shared machinery"
        )
    return getattr(module, export)
