"""Tagging a picture with an ONNX tagger."""

from __future__ import annotations

from typing import Any

from ..tagger.picking import PickParams, floor_note, tags_text
from ..tagger.runner import open_tagger, pick
from ._changes import named_file_state
from ._images import to_pil
from ._taggers import refusal_of, tagger_combo, tagger_path
from .host import get_host
from .widgets import ROOT_CATEGORY, params_from, socket, split_widgets

LATER = ("thresholds", "mcut", "mcut_floor", "mcut_maximum", "categories")
"""Settings that came after the first version."""


class TagImage:
    """Tags a picture."""

    ID = "AtelierTagImage"
    TITLE = "Tag Image (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Data"
    DESCRIPTION = (
        "Names what a picture shows, with a tagger from the taggers folder ('Tag Data Set' does it for a folder)."
    )
    SEARCH_ALIASES = ["wd14", "tagger", "interrogate", "caption", "booru"]
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("tags",)
    OUTPUT_TOOLTIPS = ("Tags separated by commas, best first; one line per picture of the batch.",)
    FUNCTION = "tag"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        first, later = split_widgets(PickParams, LATER)
        return {
            "required": {
                "image": socket("IMAGE", "The picture or pictures to tag."),
                "tagger_name": tagger_combo(),
                **first,
            },
            "optional": later,
        }

    @classmethod
    def IS_CHANGED(cls, tagger_name: str | None = None, **_: Any) -> str:
        """A tagger written anew is seen."""
        return named_file_state(get_host().tagger_path, tagger_name)

    @classmethod
    def VALIDATE_INPUTS(cls, tagger_name: str | None = None) -> bool | str:
        """A tagger this machine lacks is answered with the files that go where."""
        return refusal_of(tagger_name)

    def tag(self, image: Any, tagger_name: str, **values: Any) -> dict[str, Any]:
        """Tag each picture of the batch."""
        host = get_host()
        params = params_from(PickParams, values)
        tagger = open_tagger(tagger_path(tagger_name))
        progress = host.progress(len(image))
        if note := floor_note(tagger.scored, params):
            progress.status(note)
        scored = tagger.tag_images(map(to_pil, image), progress, total=len(image))
        lines = [tags_text(pick(scores, params)) for scores in scored]
        return {"ui": {"text": lines}, "result": ("\n".join(lines),)}


NODES = (TagImage,)
