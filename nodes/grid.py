"""The comparison grid: every cell drawn as core nodes would draw it, kept on disk, shown as one labelled sheet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.files import known_sha256
from ..evaluator.axes._spec import AxisValues
from ..evaluator.cells import Cell
from ..evaluator.grid import GridRef, open_grid, run_grid
from ..merger.lora.handle import Lora
from ._draw import CellDrawer
from ._images import show_once, shown, to_image
from ._provenance import model_file, model_name, png_texts, upstream_hash
from .host import get_host
from .widgets import ROOT_CATEGORY, combo, number, seed, socket, text

MODEL_INPUTS = ("model", "clip", "vae")
SHOWN_SHEET_PX = 4096
"""A sheet with a longer side is shown smaller under the node; the file keeps its size."""


class XYGrid:
    """Draws a grid."""

    ID = "AtelierXYGrid"
    TITLE = "XY Grid (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Compare"
    DESCRIPTION = (
        "Draws one picture for every column and row and puts them on a labelled sheet. Each cell equals the same "
        "wiring of core nodes and is saved with its workflow; a grid that was interrupted goes on where it stopped."
    )
    SEARCH_ALIASES = ["xy plot", "xyz plot", "x/y", "compare", "grid", "matrix"]
    RETURN_TYPES = ("IMAGE", "ATELIER_GRID")
    RETURN_NAMES = ("sheet", "grid")
    OUTPUT_TOOLTIPS = (
        "The labelled sheet as one picture.",
        "The grid on disk: all cells with their settings, for scoring.",
    )
    FUNCTION = "draw"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        host = get_host()
        return {
            "required": {
                "model": socket("MODEL", "The model to draw with; LoRAs of an axis come on top."),
                "clip": socket("CLIP", "The text encoder; LoRAs of an axis come on top."),
                "vae": socket("VAE", "The autoencoder that turns latents into pictures."),
                "prompt": text("What to draw, where no axis says otherwise.", multiline=True),
                "negative": text("What to keep out, where no axis says otherwise.", multiline=True),
                "seed": seed("Decides the noise, where no axis says otherwise; the same seed draws the same picture."),
                "steps": number("INT", 20, 1, 10_000, 1, "Sampling steps."),
                "cfg": number("FLOAT", 7.0, 0.0, 100.0, 0.1, "How strictly the prompt is followed."),
                "sampler": combo(host.samplers(), "The sampling method.", default="euler"),
                "scheduler": combo(host.schedulers(), "How noise levels are spread over the steps.", default="normal"),
                "width_px": number("INT", 512, 16, 16384, 8, "Width of each picture in pixels."),
                "height_px": number("INT", 512, 16, 16384, 8, "Height of each picture in pixels."),
            },
            "optional": {
                "x": socket("ATELIER_AXIS", "What the columns vary; a single column when left open."),
                "y": socket("ATELIER_AXIS", "What the rows vary; a single row when left open."),
                "lora": socket("ATELIER_LORA", "A LoRA on every cell, which strength and block axes vary."),
                "title": text("A line above the sheet.", advanced=True),
            },
            "hidden": {"graph": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO", "node_id": "UNIQUE_ID"},
        }

    def draw(
        self,
        model: Any,
        clip: Any,
        vae: Any,
        prompt: str,
        negative: str,
        seed: int,
        steps: int,
        cfg: float,
        sampler: str,
        scheduler: str,
        width_px: int,
        height_px: int,
        x: AxisValues | None = None,
        y: AxisValues | None = None,
        lora: Lora | None = None,
        title: str = "",
        graph: Mapping[str, Any] | None = None,
        extra_pnginfo: Mapping[str, Any] | None = None,
        node_id: str | None = None,
    ) -> dict[str, Any]:
        """Draw what is missing of the grid and return it."""
        host = get_host()
        known = graph if graph and node_id in graph else {}
        texts = None if host.metadata_disabled() else png_texts(graph, extra_pnginfo)
        cell = Cell(
            prompt=prompt,
            negative=negative,
            seed=seed,
            steps=steps,
            cfg=cfg,
            sampler=sampler,
            scheduler=scheduler,
            width_px=width_px,
            height_px=height_px,
            loras=() if lora is None else (lora,),
        )
        drawer = CellDrawer(model, clip, vae)
        ref = run_grid(
            cell,
            x,
            y,
            folder=host.output_dir() / "atelier" / "grids",
            generate=drawer,
            check_cell=drawer.check,
            cell_metadata=lambda _: texts,
            progress=host.progress(),
            identity=" ".join(
                [
                    host.name,
                    host.fingerprint(model, clip, vae),
                    upstream_hash(known, node_id or "", MODEL_INPUTS),
                    drawer.identity(),
                ]
            ),
            model_name=model_name(known, node_id or ""),
            model_hash="" if texts is None else _hash_of(model_file(known, node_id or "")),
            title=title,
        )
        return _shown_grid(ref)


def _hash_of(checkpoint: str) -> str:
    """SHA-256 of a checkpoint by its name; "" for a name that is in no checkpoints folder, such as a bare UNet's."""
    host = get_host()
    if checkpoint.replace("\\", "/") not in [name.replace("\\", "/") for name in host.checkpoint_names()]:
        return ""
    return known_sha256(host.checkpoint_path(checkpoint), host.progress())


def _shown_grid(ref: GridRef) -> dict[str, Any]:
    """The node's return value: the sheet under the node, as IMAGE, and the grid."""
    grid = open_grid(ref)
    sheet = grid.sheet_image()
    entry = shown(grid.sheet_path)
    if max(sheet.size) > SHOWN_SHEET_PX:
        small = sheet.copy()
        small.thumbnail((SHOWN_SHEET_PX, SHOWN_SHEET_PX))
        entry = show_once(small, "atelier-sheet")
    said = f"{len(grid.cells)} cells, sheet {grid.sheet_path.name}"
    return {"ui": {"images": [entry], "text": [said]}, "result": (to_image([sheet]), ref)}


NODES = (XYGrid,)
