"""The tiny drawn world inside ComfyUI: a data set of a concept, and prompts to try it with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.files import read_json, write_json
from ..dataset.identity import fingerprint_folder
from ..pico.datasets import concept_prompts, concept_tag, write_concept_dataset
from ..pico.world import CONCEPTS
from .host import get_host
from .widgets import ROOT_CATEGORY, combo, number, seed

FOLDER = "atelier-pico"
MARK = "drawn.json"
KINDS = ["trigger", "other", "mixed"]


def _concepts() -> tuple[list[str], dict[str, Any]]:
    return combo(list(CONCEPTS), "What is to be learned: kest and vard are characters, tavi is a style.")


def _name(concept: str, num_images: int, num_reg_images: int, seed: int, concept_repeats: int) -> str:
    beside = f"-x{concept_repeats}" if concept_repeats else ""
    return f"{concept}-{num_images}-{num_reg_images}-{seed}{beside}"


class PicoDataset:
    """Draws a data set."""

    ID = "AtelierPicoDataset"
    TITLE = "Draw Pico Data Set (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Pico"
    DESCRIPTION = (
        "Draws pictures of a concept that the tiny model has never seen, with captions, and regularisation pictures "
        f"without it, into the input folder ({FOLDER}/...); what is already there is kept."
    )
    SEARCH_ALIASES = ["example data", "tutorial", "quickstart", "toy data"]
    RETURN_TYPES = ("STRING", "STRING")
    RETURN_NAMES = ("folder", "reg_folder")
    OUTPUT_TOOLTIPS = ("Folder of the concept's pictures.", "Folder of the regularisation pictures.")
    FUNCTION = "draw"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "concept": _concepts(),
                "num_images": number("INT", 28, 1, 1000, 1, "How many pictures of the concept are drawn."),
                "num_reg_images": number("INT", 64, 0, 1000, 1, "How many pictures without the concept are drawn."),
                "seed": seed("Decides what the pictures show."),
                "concept_repeats": number(
                    "INT",
                    0,
                    0,
                    100,
                    1,
                    "0 puts the pictures without the concept into a regularisation folder, which takes half of the "
                    "steps. Any other number puts them beside the concept's, which are shown so many times as often (a "
                    "style about half of it).",
                ),
            }
        }

    @classmethod
    def IS_CHANGED(
        cls,
        concept: str | None = None,
        num_images: int | None = None,
        num_reg_images: int | None = None,
        seed: int | None = None,
        concept_repeats: int | None = 0,
    ) -> str:
        """Says "as drawn" until somebody edits the folder, so that drawing it is not taken for an edit."""
        if concept is None or num_images is None or num_reg_images is None or seed is None or concept_repeats is None:
            return "wired"
        folder = get_host().input_dir() / FOLDER / _name(concept, num_images, num_reg_images, seed, concept_repeats)
        return "as drawn" if not folder.exists() or _is_untouched(folder) else fingerprint_folder(folder)

    def draw(
        self, concept: str, num_images: int, num_reg_images: int, seed: int, concept_repeats: int = 0
    ) -> tuple[str, str]:
        """Draw it, unless it lies there."""
        host = get_host()
        name = _name(concept, num_images, num_reg_images, seed, concept_repeats)
        folder = host.input_dir() / FOLDER / name
        if not folder.exists():
            host.progress().status(f"Drawing {num_images} pictures of {concept}")
            write_concept_dataset(
                folder,
                concept,
                num_images=num_images,
                num_reg_images=num_reg_images,
                seed=seed,
                concept_repeats=concept_repeats,
            )
            write_json(folder / MARK, {"fingerprint": fingerprint_folder(folder)})
        return f"{FOLDER}/{name}/img", f"{FOLDER}/{name}/reg" if num_reg_images and not concept_repeats else ""


def _is_untouched(folder: Path) -> bool:
    mark = folder / MARK
    return mark.is_file() and read_json(mark).get("fingerprint") == fingerprint_folder(folder)


class PicoPrompts:
    """Writes prompts."""

    ID = "AtelierPicoPrompts"
    TITLE = "Write Pico Prompts (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Pico"
    DESCRIPTION = (
        "Writes prompts for the tiny model. Trigger prompts call the concept in combinations that no training caption "
        "holds; other prompts ask for what the model knew before."
    )
    SEARCH_ALIASES = ["example prompts", "test prompts", "quickstart"]
    RETURN_TYPES = ("STRING", "STRING", "STRING")
    RETURN_NAMES = ("prompts", "trigger", "concept_tag")
    OUTPUT_TOOLTIPS = (
        "One prompt per line, for the prompt axis of a grid.",
        "The words that call the concept.",
        "The tagger's tags that together make the concept.",
    )
    FUNCTION = "write"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "concept": _concepts(),
                "kind": combo(
                    KINDS,
                    "Prompts that call the concept, prompts without it, or a third of the first and the rest of the "
                    "second.",
                ),
                "num_prompts": number("INT", 4, 1, 1000, 1, "How many prompts are written."),
                "seed": seed("Decides which prompts."),
            }
        }

    def write(self, concept: str, kind: str, num_prompts: int, seed: int) -> tuple[str, str, str]:
        """Write them."""
        prompts = concept_prompts(concept, kind=kind, num_prompts=num_prompts, seed=seed)
        return "\n".join(prompts), CONCEPTS[concept].trigger, concept_tag(concept)


NODES = (PicoDataset, PicoPrompts)
