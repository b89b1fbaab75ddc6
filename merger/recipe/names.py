"""From a model's name in a recipe to a checkpoint that is there."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...core.errors import InputError, unknown_name

SUFFIXES = (".safetensors", ".sft")
OLD_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
_HASH = re.compile(r"\s*\[[0-9a-fA-F]{6,64}\]\s*$")


def find_model(given: str, names: Sequence[str]) -> str:
    """The checkpoint that a recipe means.

    Recipes name models with or without folder, ending and the web UI's hash in brackets, in any case of letters.

    Args:
        given: The name in the recipe.
        names: The checkpoints that are there.

    Raises:
        InputError: An old checkpoint is meant (the converter is named), or the name fits several.
        UnknownNameError: There is none; the nearest are listed.
    """
    wanted = _HASH.sub("", given.replace("\\", "/")).strip()
    for normal in (str, str.lower):
        for part in (_whole, _without_ending, _base_name):
            found = [name for name in names if normal(part(name)) == normal(part(wanted))]
            if len(found) == 1:
                return found[0]
            if len(found) > 1:
                raise InputError(f"the model {given!r} could be {' or '.join(found[:4])}; write its folder as well")
    if wanted.lower().endswith(OLD_SUFFIXES):
        raise InputError(
            f"{given} is an old checkpoint and there is no .safetensors file of that name: make one with the node "
            "'Convert Checkpoint (Atelier)' or the command: lora-atelier convert"
        )
    raise unknown_name("model in the recipe", wanted, [_without_ending(name) for name in names])


def _whole(name: str) -> str:
    return name.replace("\\", "/")


def _without_ending(name: str) -> str:
    name = _whole(name)
    for suffix in (*SUFFIXES, *OLD_SUFFIXES):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def _base_name(name: str) -> str:
    return _without_ending(name).rpartition("/")[2]
