"""LoRAs merged into a checkpoint: live in the graph, or as a file."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core.files import known_sha256
from ..core.params import Params, param
from ..core.stream import TensorReader
from ..families._base import Base, MergedLora
from ..merger.lora.handle import Lora
from ..merger.lora.ingredients import Ingredient
from ..merger.lora.into_checkpoint import AS_FILE, MergePlan, merge_into, merged_checkpoint_metadata, plan_merge
from ..merger.lora.metadata import recipe
from ..merger.lora.modules import LoraFile
from ..merger.lora.saving import DTYPES, IF_EXISTS, KEEP_BOTH, target_path
from ._lora_output import path_below, source_of
from .base import merged_lora
from .host import get_host
from .lora import presets_state
from .merge_loras import lora_sockets, ratios_field, wired, with_ratios
from .widgets import ROOT_CATEGORY, params_from, socket, widgets


@dataclass(frozen=True, kw_only=True)
class CheckpointOutputParams(Params):
    """How a checkpoint is written."""

    dtype: str = param(AS_FILE, doc="Number format of the new file.", choices=(AS_FILE, *DTYPES))
    file_name: str = param(
        "", doc="Name in the checkpoints folder, with folders if you like; empty makes one of the inputs."
    )
    if_exists: str = param(
        KEEP_BOTH,
        doc="Where another file has that name: keep both (a number is added), replace it, or refuse. A file made by "
        "exactly these settings is never made twice, and an input is never replaced.",
        choices=IF_EXISTS,
    )
    dry_run: bool = param(
        True,
        doc="On: nothing is written; the report says what would be, and nodes behind use the base with the LoRAs "
        "merged in as they load it. Off: it is saved under 'file_name', and nodes behind use that file.",
    )


class MergeLorasIntoCheckpoint:
    """Makes LoRAs a part of a checkpoint."""

    ID = "AtelierMergeLorasIntoCheckpoint"
    TITLE = "Merge LoRAs into Checkpoint (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/LoRA"
    DESCRIPTION = (
        "Adds LoRAs to a checkpoint, each at its own strengths and block weights: live for the nodes behind, or as a "
        "new file, written tensor by tensor. Any algorithm goes in, DoRA too. The inputs stay as they are."
    )
    SEARCH_ALIASES = ["bake lora", "merge lora to checkpoint", "save checkpoint", "relora"]
    RETURN_TYPES = ("ATELIER_BASE", "STRING")
    RETURN_NAMES = ("base", "report")
    OUTPUT_TOOLTIPS = (
        "The base model with the LoRAs in it, for 'Base to MODEL CLIP VAE' and for training on.",
        "What is changed, how large the file is, and where.",
    )
    FUNCTION = "merge"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        required, optional = lora_sockets(1)
        return {
            "required": {
                "base": socket("ATELIER_BASE", "The checkpoint; LoRAs that it has merged in already stay in it."),
                **required,
                **widgets(CheckpointOutputParams),
            },
            "optional": {**optional, "ratios": ratios_field()},
        }

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> str:
        """The owner's presets are seen when they change."""
        return presets_state()

    def merge(self, base: Base, ratios: str = "", **values: Any) -> dict[str, Any]:
        """Plan, and write unless it is a dry run."""
        output, loras = params_from(CheckpointOutputParams, values), with_ratios(wired(values), ratios)
        live = base
        for lora in loras:
            live = live.with_lora(merged_lora(live, lora))
        made_by = recipe(
            "Merge into checkpoint", {"dtype": output.dtype}, [*source_of(base), *map(_merged_values, live.loras)]
        )
        with ExitStack() as stack:
            reader = stack.enter_context(TensorReader(base.path))
            parts = [_ingredient(one, base) for one in live.loras]
            for part in parts:
                stack.enter_context(part.file)
            plan = plan_merge(reader, base.open_family(), parts, dtype=output.dtype)
            default = "+".join([base.path.stem, *(lora.path.stem for lora in loras)])
            inputs = [base.path, *(one.path for one in live.loras)]
            wanted = path_below(
                output.file_name, default, folder=get_host().checkpoints_dir(), kind="checkpoints", what="checkpoint"
            )
            path, is_old = target_path(wanted, made_by, if_exists=output.if_exists, inputs=inputs)
            if not output.dry_run and not is_old:
                metadata = merged_checkpoint_metadata(reader, parts, title=path.stem, made_by=made_by)
                merge_into(reader, plan, path, metadata=metadata, progress=get_host().progress())
        report = "\n".join([_headline(base, loras), *plan.notes(), _end(plan, path, output.dry_run, is_old=is_old)])
        result = live if output.dry_run else _saved(base, path)
        return {"ui": {"text": [report]}, "result": (result, report)}


def _ingredient(one: MergedLora, base: Base) -> Ingredient:
    return Ingredient(
        file=LoraFile(one.path, one.name, family=base.family),
        strength_model=one.strength_model,
        strength_clip=one.strength_clip,
        factors=one.factors(),
    )


def _merged_values(one: MergedLora) -> dict[str, Any]:
    return {
        "name": one.name,
        "sha256": known_sha256(one.path),
        "strength_model": one.strength_model,
        "strength_clip": one.strength_clip,
        "factors": [list(pair) for pair in one.stem_strengths],
    }


def _saved(base: Base, path: Path) -> Base:
    """The new file as a base, with what was chosen of the old one."""
    return replace(base, path=path, name=_shown(path), loras=())


def _headline(base: Base, loras: list[Lora]) -> str:
    words = ", ".join(
        f"{lora.name} at {lora.strength_model:g} / {lora.strength_clip:g}"
        + (f" ({lora.block_weights})" if lora.block_weights else "")
        for lora in loras
    )
    return f"{base.name} with {words}."


def _end(plan: MergePlan, path: Path, dry_run: bool, *, is_old: bool) -> str:
    size = f"{plan.size_bytes / 2**20:,.1f} MiB"
    if dry_run:
        return f"Dry run: the file would have {size}; switch dry_run off to save it as {_shown(path)}."
    if is_old:
        return f"There already, made by these settings, as {_shown(path)}."
    return f"Saved as {_shown(path)} in the checkpoints folder, {size}."


def _shown(path: Path) -> str:
    folder = get_host().checkpoints_dir().resolve()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


NODES = (MergeLorasIntoCheckpoint,)
