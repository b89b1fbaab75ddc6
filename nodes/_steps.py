"""What the host gives to tag steps: list files below the allowed folders, and a tokenizer that counts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import AtelierError, FormatError, InputError, StorageError
from ..core.params import Params
from ..families._base import Base
from ..tagger.steps._spec import StepContext
from ._changes import file_state
from .data import DATA_ROOTS
from .host import get_host

log = logging.getLogger("lora_atelier")

MAX_FILE_BYTES = 64 * 1024 * 1024
BASE_TOOLTIP = (
    "A base whose tokenizer counts the tokens; without one ComfyUI's own CLIP tokenizer counts, or an estimate that "
    "the report names as such."
)


def step_context(base: Base | None = None, *, needs_tokens: bool = False) -> StepContext:
    """The context of the running node."""
    count, words = token_counter(base) if needs_tokens else (None, "")
    return StepContext(
        progress=get_host().progress(), read_file=read_list_file, count_tokens=count, token_counter=words
    )


def list_file(name: str) -> Path:
    """A list file that a widget names.

    Raises:
        InputError: It is not there.
        StorageError: It lies outside the allowed folders.
    """
    return get_host().roots().resolve(name, DATA_ROOTS, what="list file")


def read_list_file(name: str) -> str:
    """The text of a list file.

    Raises:
        InputError: It is a folder or too large.
        FormatError: It is not UTF-8.
        StorageError: It cannot be read.
    """
    path = list_file(name)
    try:
        if path.is_dir():
            raise InputError(f"the list file {name!r} is a folder; name a .csv or .txt file in it")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise InputError(f"the list file {name!r} has {size} bytes, allowed are {MAX_FILE_BYTES}; is it a list?")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        raise FormatError(f"the list file {name!r} is not UTF-8 text; save it as UTF-8") from cause
    except OSError as cause:
        raise StorageError(f"the list file {name!r} cannot be read ({cause.strerror}); check it") from cause


def list_file_state(name: str | None) -> str:
    """Fingerprint of a list file for ``IS_CHANGED``."""
    if name is None:
        return "wired"
    if not name.strip():
        return "none"
    try:
        return file_state(list_file(name))
    except AtelierError as refusal:
        return str(refusal)  # it comes again, as the error, when the node runs


def recipe_files_state(text: str | None) -> str:
    """Fingerprint of the files that a recipe names; the refusal's text where it cannot be read."""
    from ..tagger.recipe import parse_recipe

    if text is None:
        return "wired"
    try:
        return " ".join(list_file_state(name) for part in parse_recipe(text) for name in named_files(part.params))
    except AtelierError as refusal:
        return str(refusal)


def named_files(params: Params) -> list[str]:
    """The list files that a step's parameters name."""
    name = getattr(params, "file", "")
    return [name] if name.strip() else []


def token_counter(base: Base | None) -> tuple[Callable[[Sequence[str]], list[int]] | None, str]:
    """A function that counts CLIP tokens, and whose they are; None where there is no tokenizer.

    A tokenizer of a base that was connected must be there; the host's own is a help and may be missing.
    """
    from ..families import _spec, _tokenizer

    host = get_host()
    _spec.set_tokenizer_dirs(host.tokenizer_dirs())
    try:
        if base is not None:
            from ..core.tensors import read_header

            tokenizer = _tokenizer.find_tokenizer(read_header(base.path).metadata, base.path)
            return _counting(tokenizer), f"the tokenizer of {base.name}"
        tokenizer = _tokenizer.find_tokenizer({}, Path("the host's tokenizer"))
        return _counting(tokenizer), "CLIP's own tokenizer"
    except (ImportError, InputError) as cause:
        if base is not None:
            raise InputError(f"the tokens of {base.name} cannot be counted: {cause}") from cause
        log.info("tokens are estimated, for there is no CLIP tokenizer: %s", cause)
        return None, ""


def _counting(tokenizer: Any) -> Callable[[Sequence[str]], list[int]]:
    def count(texts: Sequence[str]) -> list[int]:
        if not texts:
            return []
        return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    return count
