"""Where the nodes that make a LoRA put it: the temporary folder in a dry run, the loras folder when it is kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from ..core.files import Roots, link_or_copy, safe_name
from ..core.params import Params, param
from ..core.tensors import read_header
from ..families._base import Base, base_hash
from ..families._spec import KOHYA
from ..merger.lora.draft_report import draft_lines
from ..merger.lora.drafts import Draft
from ..merger.lora.handle import Lora, open_lora
from ..merger.lora.ingredients import Ingredient
from ..merger.lora.modules import LoraFile
from ..merger.lora.saving import (
    AS_INPUT,
    DTYPES,
    IF_EXISTS,
    KEEP_BOTH,
    SAID,
    Saved,
    dtype_of,
    recipe_key,
    target_path,
    write_draft,
)
from .host import get_host
from .lora import explained

SUFFIX = ".safetensors"
DRY_RUN_DOC = (
    "On: nothing is kept; the report says errors and sizes, and nodes behind get the result from the temporary folder. "
    "Off: it is saved under 'file_name'."
)


@dataclass(frozen=True, kw_only=True)
class OutputParams(Params):
    """How a LoRA is written."""

    dtype: str = param(AS_INPUT, doc="Number format of the file; fp16 is what most have.", choices=(AS_INPUT, *DTYPES))
    file_name: str = param(
        "", doc="Name in the loras folder, with folders if you like; empty makes one of the inputs and settings."
    )
    if_exists: str = param(
        KEEP_BOTH,
        doc="Where another file has that name: keep both (a number is added), replace it, or refuse. A file made by "
        "exactly these settings is never made twice, and an input is never replaced.",
        choices=IF_EXISTS,
    )
    dry_run: bool = param(True, doc=DRY_RUN_DOC)


OUTPUTS = ("ATELIER_LORA", "STRING")
OUTPUT_NAMES = ("lora", "report")
OUTPUT_TOOLTIPS = (
    "The new LoRA, for 'Apply LoRA', grids and the other tools.",
    "What was done: errors, ranks and sizes by block, and where the file is.",
)


def ingredient(lora: Lora) -> Ingredient:
    """An open file with the strengths of its handle and the owner's presets.

    Raises:
        InputError: the LoRA is on at some sampler steps only, which no file can hold.
    """
    weights = explained(lora)
    if weights.scheduled:
        raise InputError(
            f"{lora.name} is on at some sampler steps only, which cannot be put into a file; take start=, stop= and "
            "step= out of its block weights."
        )
    return Ingredient.of(lora, weights.factors)


def source_of(base: Base | None) -> list[dict[str, str]]:
    """A checkpoint in a recipe: its name and content; nothing where there is none."""
    if base is None:
        return []
    return [{"name": base.name, "sha256": base_hash(base, get_host().progress())}]


def dtypes_of(files: Sequence[LoraFile]) -> set[str]:
    """The number formats of the factors in some files."""
    parts = ((part, dtype) for file in files for module in file.modules for part, dtype in module.dtypes.items())
    return {dtype for part, dtype in parts if part not in ("alpha", "dora_scale", "on_input")}


def make_lora(
    output: OutputParams,
    make: Callable[[], Draft],
    *,
    made_by: Mapping[str, Any],
    default_name: str,
    dtypes: Collection[str],
    inputs: Sequence[Path],
    like: Lora | None = None,
    naming: str = KOHYA,
) -> tuple[Lora, str]:
    """Makes a LoRA, unless it is there already, and says what was done.

    Args:
        output: how it is written.
        make: does the operation.
        made_by: the recipe.
        default_name: for an empty file name.
        dtypes: of the inputs, for the format "as the input".
        inputs: files that must stay.
        like: a handle whose strengths and trigger the new one takes.
        naming: of the modules in the file.

    Returns:
        The handle and the report.

    Raises:
        InputError: the name is refused, taken, or an input's.
        AtelierError: the operation refuses.
    """
    host = get_host()
    dtype = dtype_of(output.dtype, dtypes)
    made_by = {**made_by, "dtype": dtype, "naming": naming}
    wanted = lora_path(output.file_name, default_name)
    draft_path = host.temp_dir() / "atelier-loras" / recipe_key(made_by) / f"{safe_name(wanted.stem)}{SUFFIX}"
    # What the name would run into is said before the work, in a dry run too.
    path, is_old = target_path(wanted, made_by, if_exists=output.if_exists, inputs=inputs)
    has_draft = draft_path.exists() and target_path(draft_path, made_by, if_exists="replace", inputs=())[1]
    if output.dry_run:
        saved = _old(draft_path) if has_draft else _write(draft_path, make(), made_by, dtype, naming, wanted.stem)
        name = draft_path.name
        end = f"Dry run: switch dry_run off to save it as {_shown(path)} in the loras folder."
    else:
        if is_old:
            saved = _old(path)
        elif has_draft:
            link_or_copy(draft_path, path)
            saved = replace(_old(path), is_old=False)
        else:
            saved = _write(path, make(), made_by, dtype, naming, path.stem)
        name = _shown(saved.path)
        end = f"{'There already, made by these settings' if saved.is_old else 'Saved'} as {name} in the loras folder."
    handle = open_lora(saved.path, name, trigger=like.trigger if like else "")
    if like is not None:
        handle = replace(
            handle, strength_model=like.strength_model, strength_clip=like.strength_clip,
            block_weights=like.block_weights,
        )  # fmt: skip
    said = read_header(saved.path).metadata.get(SAID, "")
    before = sum(path.stat().st_size for path in inputs)
    size = f"File: {saved.size_bytes / 2**20:.2f} MiB"
    compared = f" (the input has {before / 2**20:.2f} MiB)" if like is not None and before else ""
    return handle, "\n".join([_headline(made_by), said, f"{size}{compared}.", end])


def lora_path(file_name: str, default_name: str) -> Path:
    """The path below the loras folder that a person's name means.

    Raises:
        InputError: the name is refused, or has another ending.
        StorageError: it leads out of the loras folder.
    """
    return path_below(file_name, default_name, folder=get_host().loras_dir(), kind="loras", what="LoRA file")


def path_below(file_name: str, default_name: str, *, folder: Path, kind: str, what: str) -> Path:
    """The path below a models folder that a person's name means; the ending may be left out."""
    name = file_name.strip().strip("\"'") or f"atelier/{safe_name(default_name)}"
    ending = Path(name).suffix.lower()
    if ending in (".ckpt", ".pt", ".pth", ".bin", ".gguf"):
        raise InputError(f"the {what} {name!r} ends in {ending}, but only {SUFFIX} files are written; rename it.")
    if ending != SUFFIX:
        name = f"{name}{SUFFIX}"
    return Roots(folders={kind: (folder,)}).resolve(name, (kind,), must_exist=False, what=what)


def _write(path: Path, draft: Draft, made_by: Mapping[str, Any], dtype: str, naming: str, title: str) -> Saved:
    said = "\n".join(draft_lines(draft, block_order=draft.family.blocks))
    return write_draft(path, draft, made_by=made_by, dtype=dtype, naming=naming, title=title, said=said)


def _old(path: Path) -> Saved:
    return Saved(path=path, size_bytes=path.stat().st_size, dtype="", is_old=True)


def _shown(path: Path) -> str:
    folder = get_host().loras_dir().resolve()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def _headline(made_by: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{key} {value}" for key, value in made_by["settings"].items() if value not in ("", None))
    names = ", ".join(one["name"] if isinstance(one, dict) else str(one) for one in made_by["inputs"])
    return f"{made_by['operation']} of {names}: {settings}." if settings else f"{made_by['operation']} of {names}."


NODES: tuple[type, ...] = ()
"""No node of its own; the folder's discovery asks every file."""
