"""A LoRA under other names, in another format, or with other words about it."""

from __future__ import annotations

import base64
import hashlib
import io
from contextlib import ExitStack
from typing import Any

from PIL import Image

from ..families._base import Base
from ..merger.lora.base_weights import BaseWeights
from ..merger.lora.handle import Lora
from ..merger.lora.metadata import recipe
from ..merger.lora.modules import LoraFile
from ..merger.lora.renaming import ConvertParams, convert, edited
from ._images import first_frame
from ._lora_output import OUTPUT_NAMES, OUTPUT_TOOLTIPS, OUTPUTS, OutputParams, dtypes_of, make_lora, source_of
from .host import get_host
from .widgets import ROOT_CATEGORY, params_from, socket, text, widget, widgets

THUMBNAIL_PX = 512
_WORDS = {
    "title": "The LoRA's name for people.",
    "trigger_phrase": "Words that call it.",
    "description": "What it is and how it is used.",
    "author": "Who made it.",
    "tags": "Key words, separated by commas.",
    "license": "Under which licence it may be used.",
    "usage_hint": "For example, which strength is good.",
}


class ConvertLora:
    """Writes a LoRA in another form."""

    ID = "AtelierConvertLora"
    TITLE = "Convert LoRA (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/LoRA"
    DESCRIPTION = (
        "Writes a LoRA under the names of another tool, in another number format, or as a plain LoRA: LoHa and LoKr "
        "exactly, DoRA, OFT and (IA)^3 as they are on the base model that is wired."
    )
    SEARCH_ALIASES = ["rename lora", "diffusers lora", "loha to lora", "lokr to lora", "dora to lora", "fp16 lora"]
    RETURN_TYPES = OUTPUTS
    RETURN_NAMES = OUTPUT_NAMES
    OUTPUT_TOOLTIPS = OUTPUT_TOOLTIPS
    FUNCTION = "convert"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "lora": socket("ATELIER_LORA", "The LoRA to convert; its strengths and block weights are handed on."),
                **widgets(ConvertParams),
                **widgets(OutputParams),
            },
            "optional": {
                "base": socket("ATELIER_BASE", "The base model; needed to make a plain LoRA of DoRA, OFT and (IA)^3."),
            },
        }

    def convert(self, lora: Lora, base: Base | None = None, **values: Any) -> dict[str, Any]:
        """Convert, and write."""
        params, output = params_from(ConvertParams, values), params_from(OutputParams, values)
        sources = [{"name": lora.name, "sha256": lora.sha256}, *source_of(base)]
        with ExitStack() as stack:
            file = stack.enter_context(LoraFile.of(lora))
            weights = None if base is None else stack.enter_context(BaseWeights(base.path, file.family))
            handle, report = make_lora(
                output,
                lambda: convert(file, params, base_weight=weights, progress=get_host().progress()),
                made_by=recipe("Convert", params.to_json(), sources),
                default_name=f"{lora.path.stem}-{params.naming}",
                dtypes=dtypes_of([file]),
                inputs=[lora.path],
                like=lora,
                naming=params.naming,
            )
        return {"ui": {"text": [report]}, "result": (handle, report)}


class EditLoraMetadata:
    """Writes what a LoRA says of itself."""

    ID = "AtelierEditLoraMetadata"
    TITLE = "Edit LoRA Metadata (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/LoRA"
    DESCRIPTION = (
        "Writes a copy of a LoRA with other words about it: title, trigger, description, thumbnail, as the modelspec "
        "standard names them. Its weights stay as they are. Empty fields leave what the file says."
    )
    SEARCH_ALIASES = ["lora metadata", "trigger word", "thumbnail", "modelspec", "strip metadata"]
    RETURN_TYPES = OUTPUTS
    RETURN_NAMES = OUTPUT_NAMES
    OUTPUT_TOOLTIPS = OUTPUT_TOOLTIPS
    FUNCTION = "edit"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        output = {
            parameter.name: widget(parameter) for parameter in OutputParams.parameters() if parameter.name != "dtype"
        }
        return {
            "required": {
                "lora": socket("ATELIER_LORA", "The LoRA to describe; its strengths and block weights are handed on."),
                **{name: text(doc, multiline=name == "description") for name, doc in _WORDS.items()},
                "remove_training": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "Takes out what the file says of its training (data set, tags, settings), but what "
                        "loaders need.",
                    },
                ),
                **output,
            },
            "optional": {"thumbnail": socket("IMAGE", "A picture for the file, made at most 512 px large.")},
        }

    def edit(self, lora: Lora, remove_training: bool, thumbnail: Any = None, **values: Any) -> dict[str, Any]:
        """Write the copy."""
        words = {name: str(values[name]) for name in _WORDS if str(values.get(name, "")).strip()}
        picture = None if thumbnail is None else data_url(first_frame(thumbnail))
        output = params_from(OutputParams, values)
        seen = "" if picture is None else hashlib.sha256(picture.encode("ascii")).hexdigest()[:16]
        settings = {**words, "remove_training": remove_training, "thumbnail": seen}
        with LoraFile.of(lora) as file:
            handle, report = make_lora(
                output,
                lambda: edited(file, words, thumbnail=picture, remove=remove_training),
                made_by=recipe("Metadata", settings, [{"name": lora.name, "sha256": lora.sha256}]),
                default_name=f"{lora.path.stem}-named",
                dtypes=dtypes_of([file]),
                inputs=[lora.path],
                like=lora,
            )
        return {"ui": {"text": [report]}, "result": (handle, report)}


def data_url(picture: Image.Image) -> str:
    """A picture as modelspec keeps it: a JPEG in a data URL."""
    small = picture.copy()
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    small.convert("RGB").save(buffer, format="JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


NODES = (ConvertLora, EditLoraMetadata)
