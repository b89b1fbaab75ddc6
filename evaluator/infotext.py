"""Generation parameters as the text that the web UI writes and reads, and file names by its rules.

The format is that of its ``parameters`` chunk: prompt, negative prompt, then one line of ``Key: value`` pairs.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .cells import Cell, LoraHandle

SAMPLER_NAMES: Mapping[str, str] = {
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "dpm_2": "DPM2",
    "dpm_2_ancestral": "DPM2 a",
    "lms": "LMS",
    "dpm_fast": "DPM fast",
    "dpm_adaptive": "DPM adaptive",
    "dpmpp_2s_ancestral": "DPM++ 2S a",
    "dpmpp_sde": "DPM++ SDE",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "ddim": "DDIM",
    "uni_pc": "UniPC",
    "lcm": "LCM",
    "restart": "Restart",
}
"""ComfyUI's sampler names in the web UI's words; others are written as they are."""

SCHEDULER_NAMES: Mapping[str, str] = {
    "normal": "Normal",
    "karras": "Karras",
    "exponential": "Exponential",
    "sgm_uniform": "SGM Uniform",
    "simple": "Simple",
    "ddim_uniform": "DDIM",
    "beta": "Beta",
    "kl_optimal": "KL Optimal",
}
"""ComfyUI's scheduler names in the web UI's words; others are written as they are."""

MAX_PROMPT_CHARS = 128
"""Longest prompt part of a file name."""
_MAX_NAME_BYTES = 240
_NAMED_ITEM = re.compile(r"(lbwe|lbw|w|start|stop|step|x|in|mid|out|base)=", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[#<>:"/\\|?*\x00-\x1f\x7f]')


def quote(value: Any) -> str:
    """Return a value for the line of pairs; one with a comma, colon or line break stands in JSON quotes."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(sign in text for sign in ',:\n"') else text


def lora_tag(lora: LoraHandle) -> str:
    """Return ``<lora:name:strength>``, with the text encoder's strength first where they differ, and the block weights.

    The first item of the block weights is ``lbw=`` where it has no name of its own; the others stand as they are.
    """
    name = re.sub(r"[<>:]", "_", lora.name.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".safetensors"))
    strengths = [f"{lora.strength_clip:g}", f"{lora.strength_model:g}"]
    if strengths[0] == strengths[1]:
        del strengths[1]
    first, colon, others = " ".join(lora.block_weights.split()).partition(":")
    if first and not _NAMED_ITEM.match(first):
        first = f"lbw={','.join(first.replace(',', ' ').split())}"
    weights = [f"{first}{colon}{others}"] if lora.block_weights.strip() else []
    return f"<lora:{':'.join([name, *strengths, *weights])}>"


def infotext(cell: Cell, *, model_name: str = "", model_hash: str = "", extra: Mapping[str, Any] | None = None) -> str:
    """Return the ``parameters`` text of a picture.

    Args:
        cell: Its inputs.
        model_name: Base model's file name; left out when empty.
        model_hash: Its SHA-256; the first ten digits are written, as the web UI does.
        extra: Further pairs, such as those of `script_keys`.
    """
    prompt = " ".join([cell.prompt, *(lora_tag(lora) for lora in cell.loras)]).strip()
    pairs: dict[str, Any] = {
        "Steps": cell.steps,
        "Sampler": SAMPLER_NAMES.get(cell.sampler, cell.sampler),
        "Schedule type": SCHEDULER_NAMES.get(cell.scheduler, cell.scheduler),
        "CFG scale": f"{cell.cfg:g}",
        "Seed": cell.seed,
        "Size": f"{cell.width_px}x{cell.height_px}",
    }
    if model_hash:
        pairs["Model hash"] = model_hash[:10]
    if model_name:
        pairs["Model"] = re.sub(r"[,:]", "", model_name.removesuffix(".safetensors"))
    if cell.denoise != 1.0:
        pairs["Denoising strength"] = f"{cell.denoise:g}"
    if cell.loras:
        pairs["Lora hashes"] = ", ".join(f"{Path(lora.name).stem}: {lora.sha256[:10]}" for lora in cell.loras)
    pairs.update(extra or {})
    lines = [prompt]
    if cell.negative.strip():
        lines.append(f"Negative prompt: {cell.negative}")
    lines.append(", ".join(f"{key}: {quote(value)}" for key, value in pairs.items()))
    return "\n".join(lines)


def script_keys(*, x_name: str, x_labels: tuple[str, ...], y_name: str, y_labels: tuple[str, ...]) -> dict[str, str]:
    """Return the pairs that the web UI's X/Y/Z plot adds to a sheet; an axis without values is left out."""
    keys = {"Script": "X/Y/Z plot"}
    for letter, name, labels in (("X", x_name, x_labels), ("Y", y_name, y_labels)):
        if labels:
            keys[f"{letter} Type"] = name
            keys[f"{letter} Values"] = ", ".join(quote(label) if "," in label else label for label in labels)
    return keys


def sheet_name(counter: int, seed: int, prompt: str) -> str:
    """Return ``xy_grid-0001-<seed>-<prompt>.png`` by the web UI's rules.

    Characters that a file system refuses become ``_``, the prompt is cut at 128 characters (and further where its
    UTF-8 form would be too long for a file system), spaces and dots at the ends are dropped.
    """
    text = _FORBIDDEN.sub("_", prompt.encode("utf-8", "replace").decode("utf-8")).lstrip(" ")[:MAX_PROMPT_CHARS]
    stem = f"xy_grid-{counter:04d}-{seed}-{text}"
    stem = stem.encode("utf-8")[:_MAX_NAME_BYTES].decode("utf-8", "ignore").rstrip(" .-")
    return f"{stem}.png"


def next_counter(folder: Path) -> int:
    """Return the number after the highest ``xy_grid-NNNN`` of a folder; 1 for an empty one."""
    numbers = [
        int(found.group(1))
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (found := re.match(r"xy_grid-(\d+)(?:-|\.)", path.name))
    ]
    return max(numbers, default=0) + 1
