"""Resize: every module's change cut to fewer ranks, exactly, from its small core."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ...core.errors import FormatError, InputError
from ...core.progress import Progress
from .cutting import Layer, cut_layers
from .drafts import Draft, Made
from .factors import Change, change_of, weight_shape
from .metadata import resized_metadata
from .modules import LoraFile, LoraModule, check_finite
from .ranks import RankParams

BaseWeight = Callable[[LoraModule], Tensor]
"""Gives the weight that a module changes, fp32."""


def resize(
    file: LoraFile,
    params: RankParams,
    *,
    bytes_per_number: int = 2,
    base_weight: BaseWeight | None = None,
    progress: Progress | None = None,
) -> Draft:
    """Cuts every module to the ranks that the rule gives it; LoHa and LoKr become LoRA.

    Norms, biases and embeddings are carried along as they are.

    Args:
        file: open.
        params: how many ranks.
        bytes_per_number: of the file that will be written, for the rule 'size'.
        base_weight: for DoRA, OFT and (IA)^3, whose change depends on it: it is cut as it is on that base.
        progress: told, and may cancel.

    Raises:
        InputError: the file holds a module that cannot be cut without its base model (DoRA, OFT, (IA)^3).
        FormatError: the file is damaged, or changes nothing.
    """
    if base_weight is None:
        refuse_relative(file, "cut to another rank")
    matrices = [module for module in file.modules if module.is_matrix]
    layers = [layer_of(file, module, base_weight) for module in matrices]
    cuts = cut_layers(layers, params, bytes_per_number=bytes_per_number, progress=progress, text=f"cutting {file.name}")
    made = {module.name: cut for module, cut in zip(matrices, cuts, strict=True) if cut is not None}
    made.update({module.name: carried(file, module) for module in file.modules if not module.is_matrix})
    if not made:
        raise FormatError(f"{file.name} changes nothing: all its {len(matrices)} modules are zero.")
    return Draft(
        family=file.family,
        modules=tuple(made[module.name] for module in file.modules if module.name in made),
        metadata=resized_metadata(file.metadata, list(made.values())),
        others={key: file.tensor(key) for key in file.other_keys},
        notes=_notes(file, matrices, made, params),
    )


def _notes(file: LoraFile, matrices: list[LoraModule], made: dict[str, Made], params: RankParams) -> tuple[str, ...]:
    notes: list[str] = []
    gone = [module for module in matrices if module.name not in made]
    if gone:
        why = "got no rank from the common budget, or change nothing," if params.is_common else "change nothing"
        notes.append(f"{len(gone)} modules {why} and are left out, such as {gone[0].stem}.")
    others = sorted({module.algorithm for module in matrices} - {"lora"})
    if others:
        notes.append(f"Written as LoRA; {file.name} had {', '.join(others)} modules.")
    if any(module.relative for module in matrices):
        notes.append("What depended on the base model is now what it was on the base that was given.")
    return tuple(notes)


def refuse_relative(file: LoraFile, verb: str) -> None:
    """Refuses a file some of whose changes depend on the base model.

    Raises:
        InputError: it names the algorithm and what to do.
    """
    relative = [module for module in file.modules if module.relative]
    if relative:
        kind = "DoRA" if relative[0].is_dora else relative[0].algorithm
        raise InputError(
            f"{file.name} holds {len(relative)} modules of {kind}, whose change depends on the base model and cannot "
            f"be {verb} without it; make a plain LoRA of it first with 'Convert LoRA' and its base model."
        )


def layer_of(file: LoraFile, module: LoraModule, base_weight: BaseWeight | None = None) -> Layer:
    """A module of a file as a layer to cut; its scale stays where it is a LoRA's."""

    def change() -> tuple[Change, tuple[int, ...]]:
        found = change_in(file, module, base_weight)
        return found, weight_shape(found, module)

    is_plain = module.algorithm == "lora" and not module.is_dora and module.scale > 0.0
    bias = {} if module.bias_part is None else {module.bias_part: file.tensor(module.keys[module.bias_part])}
    return Layer(
        place=module.place,
        block=module.block,
        change=change,
        is_spatial=module.is_spatial,
        scale=module.scale if is_plain else 1.0,
        rank_before=module.rank,
        parts=bias,
    )


def change_in(file: LoraFile, module: LoraModule, base_weight: BaseWeight | None = None) -> Change:
    """A module's change out of its file, checked to be finite."""
    parts = file.parts(module)
    check_finite(parts, module, file.name)
    weight = base_weight(module) if module.relative and base_weight is not None else None
    return change_of(module, parts, weight=weight)


def carried(file: LoraFile, module: LoraModule) -> Made:
    """A module that is written as it is."""
    parts = file.parts(module)
    check_finite(parts, module, file.name)
    return Made(place=module.place, block=module.block, parts=parts, rank_before=module.rank)
