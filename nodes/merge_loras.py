"""Several LoRAs as one."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from ..core.errors import InputError
from ..families._base import Base
from ..merger.lora.base_weights import BaseWeights
from ..merger.lora.combine import CombineParams, combine
from ..merger.lora.handle import Lora
from ..merger.lora.metadata import recipe
from ..merger.lora.ranks import RankParams
from ..merger.lora.saving import DTYPES, dtype_of
from ._lora_output import (
    OUTPUT_NAMES,
    OUTPUT_TOOLTIPS,
    OUTPUTS,
    OutputParams,
    dtypes_of,
    ingredient,
    make_lora,
    source_of,
)
from .host import get_host
from .lora import presets_state
from .widgets import ROOT_CATEGORY, params_from, socket, text, widgets

MOST_LORAS = 8


def lora_sockets(first_required: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sockets lora_1 to lora_8: those that must be wired, and the others."""
    every = {
        f"lora_{number}": socket(
            "ATELIER_LORA", f"LoRA number {number}, with its strengths and block weights ('Open LoRA' sets them)."
        )
        for number in range(1, MOST_LORAS + 1)
    }
    names = list(every)
    return {name: every[name] for name in names[:first_required]}, {
        name: every[name] for name in names[first_required:]
    }


def wired(values: dict[str, Any]) -> list[Lora]:
    """The LoRAs that are wired, in order."""
    names = (f"lora_{number}" for number in range(1, MOST_LORAS + 1))
    return [values[name] for name in names if values.get(name) is not None]


def ratios_field() -> tuple[str, dict[str, Any]]:
    """A text with one factor for each LoRA."""
    return text(
        "One factor for each wired LoRA, in order, on top of its own strengths, such as 0.5, 0.8; a pair such as "
        "0.8/0.5 is for UNet and text encoder. Empty is 1 for all."
    )


def with_ratios(loras: list[Lora], ratios: str) -> list[Lora]:
    """The LoRAs with their strengths times the factors.

    Raises:
        InputError: not as many factors as LoRAs, or not numbers.
    """
    words = [word.strip() for word in ratios.replace(";", ",").split(",") if word.strip()]
    if not words:
        return loras
    if len(words) != len(loras):
        raise InputError(
            f"ratios has {len(words)} factors and {len(loras)} LoRAs are wired: give one for each, or none."
        )
    return [_times(lora, word) for lora, word in zip(loras, words, strict=True)]


def _times(lora: Lora, word: str) -> Lora:
    try:
        numbers = [float(part) for part in word.split("/")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or not all(math.isfinite(factor) for factor in numbers):
        raise InputError(f"ratios holds {word!r}, which is no number; write 0.5, or 0.8/0.5 for UNet and text encoder.")
    return replace(
        lora, strength_model=lora.strength_model * numbers[0], strength_clip=lora.strength_clip * numbers[-1]
    )


class MergeLoras:
    """Puts LoRAs together."""

    ID = "AtelierMergeLoras"
    TITLE = "Merge LoRAs (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/LoRA"
    DESCRIPTION = (
        "Puts several LoRAs into one that does what all of them do together, each at its own strength and block "
        "weights. The changes themselves are added, so that a strength of 0.5 is half of a LoRA and files of any rank, "
        "alpha and algorithm go together."
    )
    SEARCH_ALIASES = ["merge lora", "combine lora", "svd merge", "ties", "dare"]
    RETURN_TYPES = OUTPUTS
    RETURN_NAMES = OUTPUT_NAMES
    OUTPUT_TOOLTIPS = OUTPUT_TOOLTIPS
    FUNCTION = "merge"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        required, optional = lora_sockets(2)
        return {
            "required": {
                **required,
                **widgets(CombineParams),
                **widgets(RankParams),
                **widgets(OutputParams),
            },
            "optional": {
                **optional,
                "base": socket("ATELIER_BASE", "The base model; only needed where a LoRA is a DoRA, OFT or (IA)^3."),
                "ratios": ratios_field(),
            },
        }

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> str:
        """The owner's presets are seen when they change."""
        return presets_state()

    def merge(self, base: Base | None = None, ratios: str = "", **values: Any) -> dict[str, Any]:
        """Add, and write."""
        loras = with_ratios(wired(values), ratios)
        params, ranks = params_from(CombineParams, values), params_from(RankParams, values)
        output = params_from(OutputParams, values)
        settings = {**params.to_json(), **({} if params.method == "concat" else ranks.to_json())}
        inputs: list[Any] = [*loras, *source_of(base)]
        with ExitStack() as stack:
            parts = [ingredient(lora) for lora in loras]
            for part in parts:
                stack.enter_context(part.file)
            weights = None if base is None else stack.enter_context(BaseWeights(base.path, parts[0].file.family))
            dtypes = dtypes_of([part.file for part in parts])
            width = DTYPES[dtype_of(output.dtype, dtypes)].itemsize
            handle, report = make_lora(
                output,
                lambda: combine(
                    parts, params, ranks, base_weight=weights, bytes_per_number=width, progress=get_host().progress()
                ),
                made_by=recipe("Merge", settings, inputs),
                default_name="+".join(lora.path.stem for lora in loras),
                dtypes=dtypes,
                inputs=[lora.path for lora in loras],
            )
        return {"ui": {"text": [report]}, "result": (handle, report)}


NODES = (MergeLoras,)
