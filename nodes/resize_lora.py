"""A LoRA with fewer ranks."""

from __future__ import annotations

from typing import Any

from ..merger.lora.handle import Lora
from ..merger.lora.metadata import recipe
from ..merger.lora.modules import LoraFile
from ..merger.lora.ranks import RankParams
from ..merger.lora.resize import resize
from ..merger.lora.saving import DTYPES, dtype_of
from ._lora_output import OUTPUT_NAMES, OUTPUT_TOOLTIPS, OUTPUTS, OutputParams, dtypes_of, make_lora
from .host import get_host
from .widgets import ROOT_CATEGORY, params_from, socket, widgets


class ResizeLora:
    """Cuts a LoRA to fewer ranks."""

    ID = "AtelierResizeLora"
    TITLE = "Resize LoRA (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/LoRA"
    DESCRIPTION = (
        "Makes a LoRA smaller, or shows how small it could be: each module is cut to its best change of fewer ranks, "
        "exactly, in seconds. LoCon, LoHa and LoKr go in, plain LoRA comes out. The report says the error before "
        "anything is saved."
    )
    SEARCH_ALIASES = ["resize", "reduce rank", "lora dim", "svd", "compress lora"]
    RETURN_TYPES = OUTPUTS
    RETURN_NAMES = OUTPUT_NAMES
    OUTPUT_TOOLTIPS = OUTPUT_TOOLTIPS
    FUNCTION = "resize"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "lora": socket("ATELIER_LORA", "The LoRA to resize; its strengths and block weights are handed on."),
                **widgets(RankParams),
                **widgets(OutputParams),
            }
        }

    def resize(self, lora: Lora, **values: Any) -> dict[str, Any]:
        """Cut, and write."""
        ranks, output = params_from(RankParams, values), params_from(OutputParams, values)
        with LoraFile.of(lora) as file:
            dtypes = dtypes_of([file])
            width = DTYPES[dtype_of(output.dtype, dtypes)].itemsize
            handle, report = make_lora(
                output,
                lambda: resize(file, ranks, bytes_per_number=width, progress=get_host().progress()),
                made_by=recipe("Resize", ranks.to_json(), [{"name": lora.name, "sha256": lora.sha256}]),
                default_name=f"{lora.path.stem}-{_words(ranks)}",
                dtypes=dtypes,
                inputs=[lora.path],
                like=lora,
            )
        return {"ui": {"text": [report]}, "result": (handle, report)}


def _words(ranks: RankParams) -> str:
    if ranks.rule == "fixed":
        return f"dim{ranks.rank}" + (f"-conv{ranks.conv_rank}" if ranks.conv_rank else "")
    value = "" if ranks.rule in ("exact", "sv_knee") else f"{ranks.value:g}"
    return f"{ranks.rule}{value}"


NODES = (ResizeLora,)
