"""A LoRA out of two checkpoints, and how many ranks their difference fills."""

from __future__ import annotations

import json
from typing import Any

from ..core.errors import InputError
from ..families._base import Base
from ..merger.lora.differences import differences, differences_json, differences_report
from ..merger.lora.extract import CheckpointPair, ExtractParams, extract
from ..merger.lora.metadata import recipe
from ..merger.lora.ranks import RankParams
from ..merger.lora.saving import DTYPES, dtype_of
from ._images import show_once, to_image
from ._lora_output import OUTPUT_NAMES, OUTPUT_TOOLTIPS, OUTPUTS, OutputParams, make_lora, source_of
from .host import get_host
from .widgets import ROOT_CATEGORY, number, params_from, socket, widgets

_BASE = "The original checkpoint."
_TUNED = "The checkpoint that was made of it, by training or merging."


def open_pair(base: Base, tuned: Base) -> CheckpointPair:
    """Both checkpoints, open.

    Raises:
        InputError: they are of unlike families, the same file, or have LoRAs merged in first.
    """
    if base.family != tuned.family:
        raise InputError(
            f"{base.name} is {base.family} and {tuned.name} is {tuned.family}: give two checkpoints of one kind."
        )
    for one in (base, tuned):
        if one.loras:
            raise InputError(
                f"{one.name} has LoRAs merged in for use, which its file does not hold; save it with 'Merge LoRAs into "
                "Checkpoint' first."
            )
    return CheckpointPair(base.path, tuned.path, base.open_family())


class ExtractLora:
    """Takes a LoRA out of two checkpoints."""

    ID = "AtelierExtractLora"
    TITLE = "Extract LoRA from Checkpoints (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/LoRA"
    DESCRIPTION = (
        "Makes a LoRA or LoCon of what changed between two checkpoints, layer by layer, so that neither is ever in "
        "memory as a whole. The report says how much of every block's change was kept."
    )
    SEARCH_ALIASES = ["extract lora", "extract locon", "lora from checkpoint", "svd"]
    RETURN_TYPES = OUTPUTS
    RETURN_NAMES = OUTPUT_NAMES
    OUTPUT_TOOLTIPS = OUTPUT_TOOLTIPS
    FUNCTION = "extract"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "base": socket("ATELIER_BASE", _BASE),
                "tuned": socket("ATELIER_BASE", _TUNED),
                **widgets(ExtractParams),
                **widgets(RankParams),
                **widgets(OutputParams),
            }
        }

    def extract(self, base: Base, tuned: Base, **values: Any) -> dict[str, Any]:
        """Take the difference, cut it, and write."""
        params, ranks = params_from(ExtractParams, values), params_from(RankParams, values)
        output = params_from(OutputParams, values)
        progress = get_host().progress()
        sources = [*source_of(base), *source_of(tuned)]
        with open_pair(base, tuned) as pair:
            dtypes = {"F16"}
            width = DTYPES[dtype_of(output.dtype, dtypes)].itemsize
            handle, report = make_lora(
                output,
                lambda: extract(pair, params, ranks, bytes_per_number=width, variant=tuned.variant, progress=progress),
                made_by=recipe("Extract", {**params.to_json(), **ranks.to_json()}, sources),
                default_name=f"{tuned.path.stem}-lora",
                dtypes=dtypes,
                inputs=[base.path, tuned.path],
            )
        return {"ui": {"text": [report]}, "result": (handle, report)}


class CheckpointDifference:
    """Draws how many ranks a difference fills."""

    ID = "AtelierCheckpointDifference"
    TITLE = "Rank Spectrum of a Checkpoint (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/LoRA"
    DESCRIPTION = (
        "Draws how much of the difference of two checkpoints a LoRA of each rank could hold; most fine-tunings fit in "
        "64. Look here before extracting."
    )
    SEARCH_ALIASES = ["rank spectrum", "singular values", "compare checkpoints"]
    RETURN_TYPES = ("IMAGE", "STRING", "STRING")
    RETURN_NAMES = ("plot", "report", "json")
    OUTPUT_TOOLTIPS = ("Energy over ranks, and the size of every block's change.", "The same in words.", "As JSON.")
    FUNCTION = "measure"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "base": socket("ATELIER_BASE", _BASE),
                "tuned": socket("ATELIER_BASE", _TUNED),
                "max_layers": number(
                    "INT", 60, 0, 4096, 1, "How many layers are looked at, evenly chosen; 0 looks at all."
                ),
            }
        }

    def measure(self, base: Base, tuned: Base, max_layers: int) -> dict[str, Any]:
        """Measure and draw."""
        from ._lora_plots import difference_plot

        with open_pair(base, tuned) as pair:
            rows = differences(pair, ExtractParams(), max_layers=max_layers, progress=get_host().progress())
        names = (base.name, tuned.name)
        report = differences_report(rows, names)
        picture = difference_plot(rows, title=f"{tuned.name} - {base.name}")
        shown = {"images": [show_once(picture, "atelier-spectrum")], "text": [report]}
        return {"ui": shown, "result": (to_image([picture]), report, json.dumps(differences_json(rows)))}


NODES = (ExtractLora, CheckpointDifference)
