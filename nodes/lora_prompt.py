"""LoRA tags of a prompt: read, opened and applied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.errors import AtelierError, InputError
from ..merger.lora.handle import Lora, open_lora
from ..merger.lora.prompt import LoraTag, find_lora, parse_prompt, weights_of
from ._changes import file_state
from .host import get_host
from .lora import apply_loras, explained, presets, presets_state
from .widgets import ROOT_CATEGORY, seed, socket, text


class LoraPrompt:
    """Applies the LoRAs that a prompt's tags name."""

    ID = "AtelierLoraPrompt"
    TITLE = "LoRAs from Prompt (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/LoRA"
    DESCRIPTION = (
        "Reads the LoRA tags of a prompt as the web UI and its block weight extension write them, such as "
        "<lora:name:0.8:NCNF> or <lora:name:1:lbw=OUTALL:step=5-10>, applies the LoRAs and hands on the prompt without "
        "them. Encode the prompt with the CLIP that comes out."
    )
    SEARCH_ALIASES = ["lora tag", "a1111 prompt", "lbw", "lora syntax", "extra networks"]
    RETURN_TYPES = ("MODEL", "CLIP", "STRING", "ATELIER_LORA", "LORA_STACK", "STRING")
    RETURN_NAMES = ("model", "clip", "prompt", "loras", "lora_stack", "report")
    OUTPUT_IS_LIST = (False, False, False, True, False, False)
    OUTPUT_TOOLTIPS = (
        "The model with the LoRAs applied.",
        "The text encoder with the LoRAs applied; it also carries those that begin or end at a sampler step.",
        "The prompt without the tags.",
        "The LoRAs one by one, as a list: a node behind it runs once for each.",
        "The LoRAs for nodes that take a LORA_STACK (without block weights).",
        "Which file each tag meant, and how its block weights were read.",
    )
    FUNCTION = "apply"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "model": socket("MODEL", "The model to change."),
                "clip": socket("CLIP", "The text encoder to change."),
                "prompt": text(
                    "The prompt with its LoRA tags: <lora:name:strength>, <lora:name:text encoder:unet>, a preset or "
                    "numbers in third place, and te= unet= lbw= lbwe= start= stop= step= x= in= mid= out=. A name is "
                    "looked up in the loras folder.",
                    multiline=True,
                    dynamicPrompts=True,
                ),
            },
            "optional": {
                "seed": seed("For the letters R and U in block weights, where a tag names no seed= of its own."),
            },
        }

    @classmethod
    def IS_CHANGED(cls, prompt: str | None = None, **_: Any) -> str:
        """A LoRA file written anew is seen, and so are the owner's presets."""
        if prompt is None:
            return presets_state()
        host = get_host()
        try:
            names = host.lora_names()
            _, tags = parse_prompt(prompt)
            states = [file_state(host.lora_path(find_lora(tag.name, names))) for tag in tags]
        except AtelierError as refusal:
            return str(refusal)  # the same refusal comes when the node runs
        return " ".join([presets_state(), *states])

    def apply(
        self, model: Any, clip: Any, prompt: str, seed: int = 0
    ) -> tuple[Any, Any, str, list[Lora], list[tuple[str, float, float]], str]:
        """Read the tags, open what they name, apply it."""
        cleaned, tags = parse_prompt(prompt)
        loras, lines = opened(tags, seed=seed)
        model, clip = apply_loras(model, clip, loras)
        stack = [(lora.name, lora.strength_model, lora.strength_clip) for lora in loras]
        return model, clip, cleaned, loras, stack, "\n".join(lines) or "The prompt holds no LoRA tag."


def opened(tags: Sequence[LoraTag], *, seed: int) -> tuple[list[Lora], list[str]]:
    """The LoRAs of tags, and what was read for each.

    Raises:
        InputError: A name is not in the loras folder, or block weights do not fit; the tag is named.
        FormatError: A file is not a LoRA that can be used.
    """
    host = get_host()
    names, known = host.lora_names(), {name.casefold() for name in (*presets(), "XYZ", "ZYX")}
    loras, lines = [], []
    for tag in tags:
        name = find_lora(tag.name, names)
        weights, warning = weights_of(tag, lambda word: word.casefold() in known, seed=seed)
        lora = open_lora(
            host.lora_path(name),
            name,
            strength_model=tag.strength_model,
            strength_clip=tag.strength_clip,
            block_weights=weights,
        )
        try:
            report = explained(lora).report
        except InputError as refusal:
            raise type(refusal)(f"{tag.text[:80]}: {refusal}") from refusal
        strengths = f"text encoder {lora.strength_clip:g}, UNet {lora.strength_model:g}"
        lines.append(f"{tag.text} is {name}: {strengths}")
        lines += [f"  {line}" for line in (*((warning,) if warning else ()), *report)]
        loras.append(lora)
    return loras, lines


NODES = (LoraPrompt,)
