"""LoRA tags in a prompt: ``<lora:name:0.8:NCNF>`` and its relatives, read and taken out of the text.

Forms: the web UI's (``<lora:name:te:unet>``, ``te=``, ``unet=``), the LoRA Block Weight extension's of before and after
web UI 1.5 (a preset or numbers in third place; ``lbw=``, ``lbwe=``, ``start=``, ``stop=``, ``step=``, ``x=``),
SD.Next's (``in=``, ``mid=``, ``out=``), and ``lyco`` for ``lora``. Nothing is opened here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ...core.errors import InputError, unknown_name
from .dialects import parse_weights, split_items
from .presets import parse_slot

MAX_TAGS = 64
"""More LoRAs than this in one prompt are a mistake."""

_TAG = re.compile(r"<(lora|lyco):([^<>]*)>", re.IGNORECASE)
_NAMED = re.compile(r"^(te|unet)\s*=(.*)$", re.IGNORECASE | re.DOTALL)
_PER_STEP = re.compile(r"^[\d.+-]+@\d")
_OPEN_TAG = re.compile(r"<(lora|lyco):[^<>]*(<|$)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class LoraTag:
    """One tag.

    Attributes:
        text: The tag as it stands in the prompt.
        name: What it calls the LoRA.
        strength_clip: Factor of the text encoder.
        strength_model: Factor of the UNet.
        weights: Block-weight text of its other items, "" for none.
        third: A word in third place that may be a preset; unlike ``lbw=`` it does no harm where it is none.
    """

    text: str
    name: str
    strength_clip: float = 1.0
    strength_model: float = 1.0
    weights: str = ""
    third: str = ""


def parse_prompt(prompt: str) -> tuple[str, tuple[LoraTag, ...]]:
    """Take the LoRA tags out of a prompt.

    Returns:
        The prompt without them (a comma or space that only stood beside a tag goes with it), and the tags in order.

    Raises:
        InputError: A tag is malformed, is not closed, or there are more than 64.
    """
    found = list(_TAG.finditer(prompt))
    if len(found) > MAX_TAGS:
        raise InputError(f"The prompt holds {len(found)} LoRA tags; give at most {MAX_TAGS}.")
    rest = _TAG.sub("", prompt)
    left_open = _OPEN_TAG.search(rest)
    if left_open:
        raise InputError(f"The LoRA tag '{left_open[0][:40].strip()}' in the prompt is not closed; end it with '>'.")
    return _without(prompt, found), tuple(_tag(match[0], match[2]) for match in found)


def _without(prompt: str, tags: Sequence[re.Match[str]]) -> str:
    pieces: list[str] = []
    end = 0
    for tag in tags:
        pieces.append(prompt[end : tag.start()])
        end = tag.end()
    text = pieces[0] if pieces else prompt
    for piece in [*pieces[1:], prompt[end:]] if pieces else []:
        text = _joined(text, piece)
    return text.strip() if tags else prompt


def _joined(left: str, right: str) -> str:
    """Two pieces between which a tag stood, with one separator where there were two."""
    bare_left, bare_right = left.rstrip(" \t"), right.lstrip(" \t")
    ends = not bare_left or bare_left.endswith((",", "\n"))
    if ends and bare_right.startswith(","):
        bare_right = bare_right[1:].lstrip(" \t")
        gap = " " if bare_left.endswith(",") and bare_right else ""
        return f"{bare_left}{gap}{bare_right}"
    if left.endswith((" ", "\t")) and right.startswith((" ", "\t", ",", "\n")):
        return f"{bare_left if right.startswith((',', chr(10))) else left}{bare_right}"
    return f"{left}{right}"


def _tag(text: str, inner: str) -> LoraTag:
    name, *items = split_items(inner)
    if not name.strip():
        raise InputError(f"The LoRA tag '{text[:60]}' names no file; write <lora:name:0.8>.")
    tag = LoraTag(text=text, name=name.strip())
    numbers: list[float] = []
    named: dict[str, float] = {}
    weights: list[str] = []
    for item in items:
        match = _NAMED.match(item)
        if match:
            named[match[1].lower()] = _strength(match[2], match[1].lower(), text)
        elif _PER_STEP.match(item) or _is_number(item) and len(numbers) < 2 and not weights and not tag.third:
            numbers.append(_strength(item, "strength", text))
        elif "=" in item:
            weights.append(item)
        elif item and not tag.third and not any(part.startswith(("lbw=", "w=")) for part in weights):
            tag = replace(tag, third=item)
        elif _is_number(item):
            weights.append(f"x={item}")
        elif item:
            weights.append(f"lbwe={item}")
    strengths = _strengths(numbers, named)
    return replace(tag, strength_clip=strengths[0], strength_model=strengths[1], weights=":".join(weights))


def _strengths(numbers: Sequence[float], named: dict[str, float]) -> tuple[float, float]:
    """Text encoder and UNet; one number, or one name, serves both, as the block weight extension has it."""
    clip = named.get("te", numbers[0] if numbers else None)
    model = named.get("unet", numbers[-1] if numbers else None)
    if clip is None:
        clip = 1.0 if model is None else model
    return clip, clip if model is None else model


def weights_of(tag: LoraTag, is_known: Callable[[str], bool], *, seed: int = 0) -> tuple[str, str]:
    """The block-weight text of a tag, and a warning or "".

    A third item that is neither numbers nor a known preset is passed over with a warning: tags are copied between
    tools, and one word must not switch a LoRA off. ``lbw=`` with an unknown name is an error where it is resolved.

    Args:
        tag: Of `parse_prompt`.
        is_known: Whether a preset has this name.
        seed: Of the letters R and U, where the tag gives none.

    Raises:
        InputError: The items make no sense.
    """
    warning, vector = "", tag.third
    if vector and not is_known(vector.split()[0]) and not _is_vector(vector):
        warning = (
            f"'{vector}' in {tag.text} is neither a preset nor a row of numbers; the LoRA is applied as if it were not "
            "there."
        )
        vector = ""
    text = ":".join(part for part in (vector, tag.weights) if part)
    parsed = parse_weights(text)
    if seed and parsed.seed is None and (parsed.slots or parsed.preset):
        items = split_items(text)
        items[0] = f"{items[0]} seed={seed}"
        text = ":".join(items)
    return text, warning


def _is_vector(text: str) -> bool:
    words = [word for word in re.split(r"[\s,]+", text) if word]
    return len(words) > 1 and all("=" in word or parse_slot(word) is not None for word in words)


_SPELLINGS: tuple[Callable[[str], str], ...] = (
    lambda path: path,
    lambda path: path.rpartition(".")[0],
    lambda path: path.rpartition("/")[2],
    lambda path: path.rpartition("/")[2].rpartition(".")[0],
)
"""How a tag may name a file: whole, without its ending, without its folder, without both."""


def find_lora(name: str, names: Sequence[str]) -> str:
    """The file a tag means: its name below the loras folder, or the file's name alone, with or without its ending.

    Args:
        name: As the tag gives it; it is only compared, never used as a path.
        names: Every LoRA that may be used.

    Raises:
        UnknownNameError: There is none (the nearest are listed).
        InputError: Several files have that name in different folders; they are listed.
    """
    wanted = name.replace("\\", "/").strip()
    for fold in (str, str.casefold):
        for spelled in _SPELLINGS:
            found = [known for known in names if fold(spelled(known.replace("\\", "/"))) == fold(wanted)]
            if len(found) == 1:
                return found[0]
            if found:
                listed = ", ".join(found[:5])
                raise InputError(f"'{name}' in the prompt may be any of {listed}; write the folder too.")
    stems = [_SPELLINGS[-1](known.replace("\\", "/")) for known in names]
    raise unknown_name("LoRA in the prompt", name, stems)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _strength(text: str, what: str, tag: str) -> float:
    if "@" in text:
        raise InputError(
            f"'{text}' in {tag[:60]} changes the strength from step to step, which is not supported; use start= and "
            "stop=, or two tags."
        )
    value = float(text) if _is_number(text) else math.nan
    if not math.isfinite(value):
        raise InputError(f"{what}={text.strip() or 'nothing'} in {tag[:60]} is not a number; write 0.8, for example.")
    return value
