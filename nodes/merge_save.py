"""What is done with a merge: repairs, a dry run, a file, or models to draw with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..core.errors import unknown_name
from ..families._base import Base, open_base
from ..families._spec import get_family
from ..merger.engine import MergedTensors
from ..merger.expression import with_vae
from ..merger.handle import MergeHandle, composed_name
from ..merger.inputs import EMA_DROP, EMA_KEEP, EMA_USE
from ..merger.merge import Merged, dry_run, merge_to_file
from ..merger.metadata import LabelParams, identities, metadata_of, recipe_hash, recipe_json
from ..merger.plan import AS_A, OutputParams, planned
from ..merger.shares import share_report
from ._merge import MERGE, MODEL_KINDS, NEXT, handle_of, target_path
from .host import OWN_VAE, get_host
from .widgets import ROOT_CATEGORY, combo, params_from, socket, text, widgets

OUTPUT_FIELDS = ("dtype", "stochastic_rounding", "seed")
"""Settings of the result that its node shows; the rest belongs to the repairs."""
LAST, ALL = "", "all"


def output_widgets() -> dict[str, Any]:
    """The widgets of the result's number format."""
    return {name: entry for name, entry in widgets(OutputParams).items() if name in OUTPUT_FIELDS}


def output_of(handle: MergeHandle, values: dict[str, Any]) -> OutputParams:
    """What the widgets say; where they leave the number format open, what the recipe says."""
    given = params_from(OutputParams, {name: value for name, value in values.items() if name in OUTPUT_FIELDS})
    dtype = handle.output.dtype if given.dtype == AS_A else given.dtype
    return replace(given, dtype=dtype, ema=handle.output.ema)


class RepairMerge:
    """Says what becomes of EMA weights and which VAE is baked in."""

    ID = "AtelierRepairMerge"
    TITLE = "Repair Merge (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Merge"
    DESCRIPTION = (
        "Bakes a VAE into a checkpoint or a merge, and says what becomes of EMA weights. Position ids, NovelAI's "
        "names, missing VAEs and inpainting widths are always mended and reported, with or without this node."
    )
    SEARCH_ALIASES = ["bake vae", "ema", "prune", "clip fix", "position_ids", "model toolkit"]
    RETURN_TYPES = (MERGE,)
    RETURN_NAMES = ("merge",)
    OUTPUT_TOOLTIPS = (f"The merge with these wishes{NEXT}.",)
    FUNCTION = "repair"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "model": socket(MODEL_KINDS, "The checkpoint or merge."),
                "vae": combo(
                    get_host().vae_names(),
                    "The VAE to bake in; the first entry leaves the models' own.",
                    default=OWN_VAE,
                ),
                "ema": combo(
                    [EMA_DROP, EMA_KEEP, EMA_USE],
                    "Averaged weights (EMA) in old training files: leave them out, keep the first model's, or use "
                    "every model's in the place of its UNet's weights.",
                    default=EMA_DROP,
                ),
            }
        }

    def repair(self, model: Any, vae: str, ema: str) -> tuple[MergeHandle]:
        """Note the wishes."""
        handle = handle_of(model)
        path = get_host().vae_path(vae)
        node = handle.node if path is None else with_vae(handle.node, path, vae)
        results = () if path is not None else handle.results
        return (replace(handle, node=node, results=results, output=replace(handle.output, ema=ema)),)


class CheckMerge:
    """Shows what a merge would do."""

    ID = "AtelierCheckMerge"
    TITLE = "Dry Run of a Merge (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Merge"
    DESCRIPTION = (
        "Shows what a merge would do before it is done: shares of every model, repairs, tensors, disk, memory and "
        "time. Only the headers of the files are read."
    )
    SEARCH_ALIASES = ["dry run", "merge report", "estimate"]
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("report",)
    OUTPUT_TOOLTIPS = ("What would be done, and what would be mended.",)
    FUNCTION = "check"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {"model": socket(MODEL_KINDS, "The merge to look at."), **output_widgets()},
            "optional": {"name": text("Name of the file it would go to, for the free space there.")},
        }

    def check(self, model: Any, name: str = "", **values: Any) -> dict[str, Any]:
        """Plan it."""
        handle = handle_of(model)
        path, _ = target_path(name, handle)
        report = "\n".join(dry_run(handle.node, path, output_of(handle, values), handle.notes))
        return {"ui": {"text": [report]}, "result": (report,)}


class SaveMerge:
    """Merges into a checkpoint file."""

    ID = "AtelierSaveMerge"
    TITLE = "Save Merge (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Merge"
    DESCRIPTION = (
        "Merges into a .safetensors checkpoint, streaming: memory stays small whatever the models' size. The whole "
        "recipe is kept in the file, and a file that this recipe has made already is not made again."
    )
    SEARCH_ALIASES = ["CheckpointSave", "save checkpoint", "merge models", "checkpoint merger", "prune model", "fp16"]
    RETURN_TYPES = ("ATELIER_BASE", "STRING", "STRING")
    RETURN_NAMES = ("base", "name", "report")
    OUTPUT_TOOLTIPS = (
        "The new checkpoint as a base: train on it, merge it again, or load it.",
        "Its name below the checkpoints folder, as loaders list it.",
        "Shares, repairs, tensors, size and time.",
    )
    FUNCTION = "save"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "model": socket(MODEL_KINDS, "The merge, or a checkpoint to be pruned, repaired or converted."),
                "name": text(
                    "Name of the new file below the checkpoints folder, folders included; empty takes the recipe's or "
                    "is composed of the models' names.",
                ),
                **output_widgets(),
            },
            "optional": {
                "replace": ("BOOLEAN", {"default": False, "tooltip": "Replace another file of this name."}),
                "lanes": text(
                    "Which results of a recipe are written: empty for the last, 'all', or names separated by commas."
                ),
                **widgets(LabelParams),
            },
        }

    def save(self, model: Any, name: str, replace: bool = False, lanes: str = LAST, **values: Any) -> dict[str, Any]:
        """Merge, or find the file there already."""
        handle = handle_of(model)
        wanted = wanted_handles(handle, lanes)
        label = params_from(LabelParams, values)
        reports: list[str] = []
        shown = ""
        base: Base | None = None
        for number, each in enumerate(wanted):
            path, shown = target_path(name if number == len(wanted) - 1 else "", each)
            done: Merged = merge_to_file(
                each.node,
                path,
                output_of(each, values),
                label,
                replace=replace,
                progress=get_host().progress(),
                notes=each.notes if number == 0 else (),
            )
            base = open_base(done.path, name=shown)
            reports += done.report
        report = "\n".join(reports)
        return {"ui": {"text": [report]}, "result": (base, shown, report)}


def wanted_handles(handle: MergeHandle, lanes: str) -> list[MergeHandle]:
    """The results to be written, the handle's own last.

    Raises:
        UnknownNameError: The recipe has no such result.
    """
    if lanes.strip() == LAST:
        return [handle]
    by_name = {result.name: result for result in handle.results}
    if lanes.strip().lower() == ALL:
        names = list(by_name)
    else:
        names = [part.strip() for part in lanes.split(",") if part.strip()]
    for lane in names:
        if lane not in by_name:
            raise unknown_name("result of the recipe", lane, by_name)
    others = [handle.of(by_name[lane]) for lane in names if by_name[lane].node is not handle.node]
    return [*others, handle]


class MergeToModel:
    """Merges in memory."""

    ID = "AtelierMergeToModel"
    TITLE = "Merge to MODEL CLIP VAE (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Merge"
    DESCRIPTION = (
        "Merges without writing a file: the result can be drawn with at once. It draws exactly what the saved file "
        "draws; the whole model is held in memory."
    )
    SEARCH_ALIASES = ["live merge", "ModelMergeSimple", "try a merge", "merge preview"]
    RETURN_TYPES = ("MODEL", "CLIP", "VAE", "STRING")
    RETURN_NAMES = ("model", "clip", "vae", "report")
    OUTPUT_TOOLTIPS = (
        "The merged diffusion model.",
        "The merged text encoder.",
        "The autoencoder.",
        "Shares and repairs.",
    )
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {"required": {"model": socket(MODEL_KINDS, "The merge to load."), **output_widgets()}}

    def load(self, model: Any, **values: Any) -> tuple[Any, Any, Any, str]:
        """Compute it through the host."""
        handle, host = handle_of(model), get_host()
        output = output_of(handle, values)
        with planned(handle.node, output, host.progress()) as plan:
            name = handle.name or composed_name(handle.node)
            first = next(iter(plan.models))
            source = MergedTensors(plan, metadata_of(plan, LabelParams(), name=name), name)
            loaded = host.load_tensors(
                source,
                family=plan.family,
                variant=get_family(plan.family).variant(first.path),
                identity=recipe_hash(recipe_json(plan.root, output), identities(plan.models)),
            )
            report = "\n".join([*handle.notes, *share_report(handle.node, plan.family), *plan.said])
        return (*loaded, report)


NODES = (RepairMerge, CheckMerge, SaveMerge, MergeToModel)
