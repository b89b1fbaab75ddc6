"""What both hosts do alike: the files shipped with the pack, the owner's settings, names of models."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import FormatError, InputError, unknown_name
from ...core.files import read_json
from ...core.index import Index
from .protocol import CLIP, MODEL, PICO_NAME, PICO_XL_NAME, SETTINGS_FILE, VAE, Host

if TYPE_CHECKING:
    from ...families._base import Base

ASSETS = Path(__file__).resolve().parents[2] / "pico" / "assets"
PICO_BASE = ASSETS / "pico-base.safetensors"
PICO_XL_BASE = ASSETS / "pico-sdxl.safetensors"
PICO_TAGGER = ASSETS / "pico-tagger"
PICO_DETECTOR = ASSETS / "pico-detector"
PICO_BASES = {PICO_NAME: PICO_BASE, PICO_XL_NAME: PICO_XL_BASE}
"""The checkpoints that come with the pack, by their names in lists."""

SAMPLED_VALUES = 16
_LEVEL_TOLERANCE = 1e-5
"""Relative; two neighbouring noise levels lie much farther apart."""
INDEX_FILE = "index.sqlite"
CHECKPOINT_SUFFIXES = (".safetensors", ".sft")


def shipped(path: Path) -> Path:
    """A file or folder shipped with the pack.

    Raises:
        InputError: it is not there.
    """
    if not path.exists():
        raise InputError(f"{path.name} is not in this copy of the pack: install it again, or make it with 'make pico'.")
    return path


def choose(kind: str, given: str, allowed: Sequence[str]) -> str:
    """``given`` with forward slashes, if it is one of the allowed names.

    Raises:
        UnknownNameError: it is not; the nearest names are listed.
    """
    wanted = str(given).replace("\\", "/")
    for name in allowed:
        if name.replace("\\", "/") == wanted:
            return name
    raise unknown_name(kind, given, allowed)


def find_detector(name: str, folders: Sequence[Path]) -> Path:
    """Folder or ``.onnx`` file of a detector by its name.

    Raises:
        InputError: there is none of this name; the message says which file goes where.
    """
    entries = tagger_entries(folders)
    wanted = str(name).replace("\\", "/")
    if wanted == PICO_NAME:
        return shipped(PICO_DETECTOR)
    if wanted not in entries:
        place = str(folders[0]) if folders else "models/detectors"
        raise InputError(
            f"{unknown_name('detector', name, [*entries, PICO_NAME])}; put a detection model exported to ONNX "
            f"(YOLOv5 to v11: NAME.onnx, and its class names in NAME.txt where the file has none) into {place}"
        )
    return entries[wanted]


def extra_roots(user_dir: Path) -> tuple[Path, ...]:
    """Folders the owner of the machine has added in ``settings.json`` (key ``roots``), those that exist.

    Raises:
        FormatError: the file is not what it should be.
    """
    path = user_dir / SETTINGS_FILE
    if not path.is_file():
        return ()
    settings = read_json(path)
    roots = settings.get("roots", []) if isinstance(settings, dict) else None
    if not isinstance(roots, list) or not all(isinstance(root, str) for root in roots):
        raise FormatError(f'{path} must hold one object like {{"roots": ["D:/datasets"]}}: a list of folder names.')
    return tuple(Path(root).expanduser() for root in roots if Path(root).expanduser().is_dir())


_indexes: dict[Path, Index] = {}
_indexes_lock = threading.Lock()


def open_index(user_dir: Path) -> Index:
    """The index of a user folder; one per process and file, closed by the process's end.

    Raises:
        StorageError: the file cannot be opened or made.
    """
    path = Path(os.path.abspath(user_dir / INDEX_FILE))
    with _indexes_lock:
        if path not in _indexes:
            _indexes[path] = Index(path)
        return _indexes[path]


def tagger_entries(folders: Sequence[Path]) -> dict[str, Path]:
    """Taggers below the folders: each folder that holds a ``.onnx`` file by its name, single files by theirs."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in _graphs_below(folder):
            place = path if path.parent == folder else path.parent
            found.setdefault(place.relative_to(folder).as_posix(), place)
    return found


_graphs: dict[Path, tuple[dict[str, int], tuple[Path, ...]]] = {}


def _graphs_below(folder: Path) -> tuple[Path, ...]:
    """The ``.onnx`` files below a folder; walked again only when a folder on the way has changed.

    A page asks for this list several times at each reload, and such folders may lie on a slow disk.
    """
    times_ns, found = _graphs.get(folder, ({}, ()))
    if times_ns and all(_changed_ns(place) == time_ns for place, time_ns in times_ns.items()):
        return found
    times_ns, paths = {}, []
    for place, names, files in os.walk(folder):
        names[:] = [name for name in names if not name.startswith(".")]
        times_ns[place] = _changed_ns(place)
        paths += [Path(place, file) for file in files if file.lower().endswith(".onnx")]
    _graphs[folder] = (times_ns, tuple(sorted(paths)))
    return _graphs[folder][1]


def _changed_ns(folder: str) -> int:
    return os.stat(folder).st_mtime_ns if os.path.isdir(folder) else 0


def with_merged(host: Host, base: Base, model: MODEL, clip: CLIP, vae: VAE) -> tuple[MODEL, CLIP, VAE]:
    """The parts of a base with the LoRAs put on that belong to it."""
    from ...core.tensors import read_tensors

    for lora in base.loras:
        model, clip = host.apply_lora(
            model,
            clip,
            read_tensors(lora.path),
            strength_model=lora.strength_model,
            strength_clip=lora.strength_clip,
            stem_strengths=lora.factors(),
        )
    return model, clip, vae


def step_of(sigma: float, sigmas: Sequence[float]) -> int:
    """The sampler step, counted from 1, that a noise level belongs to; one between two steps to the earlier."""
    return max(1, sum(1 for level in sigmas if level >= sigma * (1.0 - _LEVEL_TOLERANCE)))


def add_to_digest(digest: hashlib._Hash, value: Any) -> None:
    """Add a sample of a tensor, or a plain value, or the parts of a container, to a running hash."""
    if hasattr(value, "detach"):
        flat = value.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // SAMPLED_VALUES)][: SAMPLED_VALUES + 1]
        digest.update(f"{tuple(value.shape)} {sample.float().cpu().tolist()}".encode())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            digest.update(str(key).encode())
            add_to_digest(digest, value[key])
    elif isinstance(value, (list, tuple)):
        for part in value:
            add_to_digest(digest, part)
    elif value is None or isinstance(value, (bool, int, float, str)):
        digest.update(repr(value).encode())
    else:
        digest.update(type(value).__name__.encode())
        add_to_digest(digest, getattr(value, "weights", None))


def refuse_unreadable(name: str) -> None:
    """Says how to use an old pickle checkpoint instead of loading it.

    Raises:
        InputError: the name is not that of a safetensors file.
    """
    if not name.lower().endswith(CHECKPOINT_SUFFIXES):
        raise InputError(
            f"{name} is not a .safetensors file; only those are loaded: run the node 'Convert Checkpoint (Atelier)' on "
            "it once."
        )
