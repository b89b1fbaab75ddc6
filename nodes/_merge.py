"""What the merge nodes share: handles of models and merges, names of checkpoints, where results go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.errors import AtelierError, InputError
from ..core.files import safe_name
from ..core.roots import Roots
from ..families._base import Base
from ..merger.block_weights import BlockWeights
from ..merger.expression import Model, Node
from ..merger.handle import MergeHandle, composed_name
from ..merger.lora.presets import parse_presets, read_preset_text
from ..merger.recipe.names import find_model
from .host import PICO_NAME, PICO_XL_NAME, get_host

MODEL_KINDS = "ATELIER_BASE,ATELIER_MERGE"
"""Sockets that take a model as it is, or the result of another merge."""
MERGE = "ATELIER_MERGE"
BLOCKS = "ATELIER_MERGE_BLOCKS"
USER_VECTORS_NAME = "merge_presets.txt"
"""File of a person's own vectors in the atelier user folder, in the format ``NAME:numbers``."""
NEXT = "; connect it to another merge, to 'Save Merge' or to 'Merge to MODEL CLIP VAE'"


def handle_of(value: Any, what: str = "model") -> MergeHandle:
    """A merge, or a base as the beginning of one.

    Raises:
        InputError: A base with LoRAs in it, or something else.
    """
    if isinstance(value, MergeHandle):
        return value
    if not isinstance(value, Base):
        raise InputError(f"the {what} is {type(value).__name__}; connect 'Open Base Model' or another merge")
    if value.loras:
        raise InputError(
            f"{value.name} has {len(value.loras)} LoRA(s) merged in on the wire; write them into a checkpoint first "
            "and merge that one"
        )
    return MergeHandle(
        node=Model(path=value.path, name=value.name, vae_path=value.vae_path, vae_name=value.vae_name)
    )  # fmt: skip


def node_of(value: Any, what: str = "model") -> Node:
    """What is merged on a wire; see `handle_of`."""
    return handle_of(value, what).node


def open_named(name: str) -> Model:
    """A checkpoint by the name in a recipe.

    Raises:
        InputError: There is none, or an old one; what to do is said.
    """
    host = get_host()
    chosen = find_model(name, host.checkpoint_names())
    return Model(path=host.checkpoint_path(chosen), name=chosen)


def vae_of(model: Model, name: str) -> Model:
    """The model with another VAE by its name.

    Raises:
        InputError: There is none.
    """
    path = get_host().vae_path(name)
    return model if path is None else Model(path=model.path, name=model.name, vae_path=path, vae_name=name)


def target_path(name: str, handle: MergeHandle) -> tuple[Path, str]:
    """Where a result goes below the checkpoints folder, and its name there.

    Raises:
        InputError: The name is malformed.
        StorageError: It lies outside the folder.
    """
    folder = get_host().checkpoints_dir()
    given = name.strip() or safe_name(handle.name or composed_name(handle.node))
    if given.lower().endswith(".ckpt"):
        raise InputError(
            f"{given} asks for a .ckpt file, which can run code when it is opened; leave the ending out, a "
            ".safetensors file is written"
        )
    if not given.lower().endswith((".safetensors", ".sft")):
        given = f"{given}.safetensors"
    if given in (PICO_NAME, PICO_XL_NAME):
        raise InputError(f"{given} is the name of a built-in model; choose another name")
    roots = Roots(folders={"checkpoints": (folder,)})
    path = roots.resolve(given, ("checkpoints",), must_exist=False, what="merged checkpoint")
    return path, path.relative_to(folder.resolve()).as_posix()


def variables_of(text: str) -> dict[str, str]:
    """Values of a recipe's variables: lines ``NAME = model``.

    Raises:
        InputError: A line is not of that form.
    """
    found = {}
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.split("#")[0].strip()
        if not line:
            continue
        name, equals, value = line.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise InputError(f"line {number} of the variables is {line[:60]!r}, it must be NAME = name of a model")
        found[name.strip()] = value.strip()
    return found


def with_own_vectors(weights: BlockWeights) -> BlockWeights:
    """Block weights that know the owner's own vectors, where the text names one.

    Raises:
        FormatError: The owner's file is malformed.
    """
    path = get_host().user_dir() / USER_VECTORS_NAME
    if not path.is_file():
        return weights
    from ..merger.block_weights import own_vectors

    presets = parse_presets(read_preset_text(path), origin=path.name)
    words = {word.upper() for word in weights.text.replace(",", " ").split()}
    named = tuple(row for row in own_vectors(presets) if row[0].upper() in words)
    return BlockWeights(text=weights.text, elements=weights.elements, vectors=named)


def state_of_names(names: list[str]) -> str:
    """Size and time of checkpoints by name, the refusal's text for those that are not there."""
    from ._changes import file_state

    said = []
    for name in names:
        try:
            said.append(file_state(open_named(name).path))
        except AtelierError as refusal:
            said.append(str(refusal))
    return " ".join(said)
