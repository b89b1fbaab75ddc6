"""Drawing one cell of a grid through the host, without doing anything twice that the next cell needs again."""

from __future__ import annotations

from typing import Any

from PIL import Image

from ..core.tensors import read_tensors
from ..evaluator.cells import Cell
from ..merger.lora.blocks import ResolvedWeights
from ..merger.lora.elements import load_elements
from ..merger.lora.handle import Lora, explain_strengths
from ..merger.lora.presets import load_presets
from ._images import first_frame
from .host import get_host
from .lora import put_on

MAX_FILES = 2
"""LoRA files kept in memory; a strength axis uses the same one for every column."""


class CellDrawer:
    """The ``generate`` callable of a grid.

    Kept from cell to cell: the patched model and text encoder of the current LoRA set, its encoded texts, the last
    LoRA files. Cells come with the LoRA set changing slowest, so one set at a time is enough.
    """

    def __init__(self, model: Any, clip: Any, vae: Any) -> None:
        self._host = get_host()
        self._presets = load_presets(self._host.user_dir())
        self._elements = load_elements(self._host.user_dir())
        self._plain = (model, clip)
        self._vae = vae
        self._loras: tuple[Lora, ...] | None = None
        self._patched = self._plain
        self._texts: dict[str, Any] = {}
        self._files: dict[str, Any] = {}
        self._weights: dict[Lora, ResolvedWeights] = {}

    def __call__(self, cell: Cell) -> Image.Image:
        """Draw one cell as the core nodes would: LoraLoader, CLIPTextEncode, KSampler, VAEDecode."""
        model, _ = self._with_loras(cell.loras)
        latent = self._host.sample(
            model,
            self._encoded(cell.prompt),
            self._encoded(cell.negative),
            width_px=cell.width_px,
            height_px=cell.height_px,
            seed=cell.seed,
            steps=cell.steps,
            cfg=cell.cfg,
            sampler=cell.sampler,
            scheduler=cell.scheduler,
            denoise=cell.denoise,
        )
        return first_frame(self._host.decode(self._vae, latent))

    def check(self, cell: Cell) -> None:
        """Refuse block weights that do not fit a LoRA's file, before the first cell is drawn."""
        for lora in cell.loras:
            self._weights_of(lora)

    def identity(self) -> str:
        """What a cell depends on that is neither in the cell nor in the model: the owner's presets and sets."""
        presets = "" if self._presets == load_presets() else repr(self._presets)
        return presets if self._elements == load_elements() else f"{presets} {self._elements!r}"

    def _with_loras(self, loras: tuple[Lora, ...]) -> tuple[Any, Any]:
        if loras != self._loras:
            model, clip = self._plain
            for lora in loras:
                model, clip = put_on(model, clip, lora, self._weights_of(lora), self._tensors(lora))
            self._loras, self._patched, self._texts = loras, (model, clip), {}
        return self._patched

    def _weights_of(self, lora: Lora) -> ResolvedWeights:
        """The block weights, worked out once per distinct LoRA: each time costs a look into its file."""
        if lora not in self._weights:
            self._weights[lora] = explain_strengths(lora, presets=self._presets, elements=self._elements)
        return self._weights[lora]

    def _encoded(self, text: str) -> Any:
        if text not in self._texts:
            self._texts[text] = self._host.encode_prompt(self._patched[1], text)
        return self._texts[text]

    def _tensors(self, lora: Lora) -> Any:
        if lora.sha256 not in self._files:
            while len(self._files) >= MAX_FILES:
                del self._files[next(iter(self._files))]
            self._files[lora.sha256] = read_tensors(lora.path)
        return self._files[lora.sha256]
