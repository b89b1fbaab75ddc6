"""How settings are told: in a run's name, by their origin, as what differs from the defaults, and as a hash."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.params import Params

if TYPE_CHECKING:
    from .config import Job

NOT_IN_KEY = ("run_name", "save_every_steps", "save_every_epochs", "keep_last", "mode", "recomputed")
"""Settings that do not change the trained numbers."""


def normal_blocks(blocks: str) -> str:
    """Returns how a block choice is shown: upper case, words separated by commas; "" and "ALL" are the same.

    Of targets that say more than blocks, the lines are joined by semicolons.
    """
    lines = [line.partition("#")[0].strip() for line in re.split(r"\n|\s\|\s", blocks)]
    plain = " ".join(line for line in lines if not re.search("[:=]", line))
    words = re.sub(r"\s*-\s*", "-", plain.upper()).replace(",", " ").replace(";", " ").split()
    shown = "" if words == ["ALL"] else ",".join(words)
    return "; ".join([*([shown] if shown else []), *(line for line in lines if re.search("[:=]", line))])


def differences(params: Params) -> dict[str, Any]:
    """Returns the fields of ``params`` that differ from their defaults."""
    standard = {parameter.name: parameter.default for parameter in type(params).parameters()}
    return {
        field.name: getattr(params, field.name)
        for field in fields(params)
        if getattr(params, field.name) != standard[field.name]
    }


SHORT_NAMES: Mapping[str, str] = {
    "steps": "s",
    "batch_size": "b",
    "resolution_px": "px",
    "rank": "r",
    "alpha": "a",
    "lr_unet": "lr",
    "lr_text_encoder": "te",
    "clip_skip": "skip",
    "noise_offset": "offset",
    "gradient_accumulation_steps": "acc",
    "seed": "seed",
}
"""How a setting is shortened in a composed run name."""

SPOKEN_SWITCHES: Mapping[str, str] = {"train_unet": "te-only", "train_text_encoder": "unet-only"}
"""What a composed name says when a switch that is on by default is off."""

SILENT_IN_NAME = (*NOT_IN_KEY, "save_dtype", "bucket_step_px", "bucket_min_px", "bucket_max_px")


def composed_name(job: Job) -> str:
    """Returns a name such as ``kest-r8-s600-lr0.0005`` from what differs from the defaults."""
    words = [Path(job.dataset.root).name or "run"]
    if job.network.name != "lora":
        words.append(job.network.name)
    choices = (job.network.params, job.params, job.optimizer.params, job.objective.params)
    for params in (*choices, job.augment, job.captions):
        words.extend(_word(name, value) for name, value in differences(params).items() if name not in SILENT_IN_NAME)
    words.extend(_blocks_words(job.blocks))
    if job.stages:
        words.append(f"{len(job.stages)}stages")
    if job.start is not None:
        words.append(f"from-{Path(job.start.name).stem}")
    return "-".join(words)


def _blocks_words(blocks: str) -> list[str]:
    """The blocks with plus signs; of targets that say more, a few digits that tell one text from another."""
    plain, *more = normal_blocks(blocks).split("; ")
    if ":" in plain or "=" in plain:
        plain, more = "", [plain, *more]
    words = [plain.replace(",", "+")] if plain else []
    return [*words, f"targets-{hash_of(more)[:4]}"] if more else words


def _word(name: str, value: Any) -> str:
    if name in SPOKEN_SWITCHES:
        return SPOKEN_SWITCHES[name]
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    return f"{SHORT_NAMES[name]}{shown}" if name in SHORT_NAMES else f"{name}={shown}"


def origins(params: Params) -> dict[str, dict[str, Any]]:
    """Returns every setting with its value and where it came from: "default" or "given"."""
    given = differences(params)
    return {
        name: {"value": value, "origin": "given" if name in given else "default"}
        for name, value in params.to_json().items()
    }


def hash_of(parts: Sequence[str]) -> str:
    """Returns one SHA-256 (hexadecimal) over a list of texts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8"))
        digest.update(b"\x00")
    return digest.hexdigest()
