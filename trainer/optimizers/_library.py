"""Optimizers out of pytorch_optimizer and torch, which are imported only when they are used."""

import importlib
from typing import Any

from ...core.errors import MissingLibraryError


def library_class(name: str) -> Any:
    """Returns a class of pytorch_optimizer.

    Raises:
        MissingLibraryError: the library is not installed, or too old to have it.
    """
    library = library_module("pytorch_optimizer")
    found = getattr(library, name, None)
    if found is None:
        version = getattr(library, "__version__", "?")
        raise MissingLibraryError(
            f"pytorch_optimizer {version} has no {name}: install a newer one with 'pip install -U pytorch_optimizer'."
        )
    return found


def library_module(name: str) -> Any:
    """Imports a library.

    Raises:
        MissingLibraryError: it is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as cause:
        raise MissingLibraryError(
            f"This optimizer needs the library {name}, which cannot be loaded ({cause}): install it with "
            f"'pip install {name}', or choose another optimizer."
        ) from cause
