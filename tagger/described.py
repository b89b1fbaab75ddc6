"""A tagger that no file of ``taggers/`` knows, described by ``atelier_tagger.json`` beside its graph."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ..core.errors import FormatError, StorageError, unknown_name
from .taggers._spec import Pad, TaggerSpec

DESCRIPTION_FILE = "atelier_tagger.json"
"""Holds the ten facts of a tagger; what is left out is as in `DEFAULTS`."""

DEFAULTS: Mapping[str, Any] = {
    "name": "described tagger",
    "layout": "NHWC",
    "channels": "BGR",
    "scale": 255.0,
    "mean": [0.0, 0.0, 0.0],
    "deviation": [1.0, 1.0, 1.0],
    "size_px": 448,
    "pad": "white",
    "fit_first": False,
    "resample": "bicubic",
    "output": 0,
    "sigmoid": None,
    "table": "selected_tags.csv",
    "name_column": "name",
    "category_column": "category",
    "categories": {"0": "general", "1": "artist", "3": "copyright", "4": "character", "5": "meta", "9": "rating"},
    "argmax": ["rating"],
    "thresholds": {"general": 0.35, "character": 0.85},
}
"""The WD14 facts, which most taggers share in part."""

_WORDS: Mapping[str, tuple[str, ...]] = {
    "layout": ("NHWC", "NCHW"),
    "channels": ("RGB", "BGR"),
    "resample": ("bicubic", "bilinear", "lanczos", "box"),
}
_PADS: tuple[Literal["white", "black", "mean", "edge", "none"], ...] = ("white", "black", "mean", "edge", "none")


def read_description(path: Path) -> TaggerSpec:
    """The adapter that a description file stands for.

    Raises:
        FormatError: A key is unknown or a value is not what it should be; what is allowed is named.
        StorageError: The file cannot be read.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as cause:
        raise FormatError(f"{path.name} is not valid JSON: {cause}") from cause
    except OSError as cause:
        raise StorageError(f"{path.name} cannot be read ({cause.strerror}); check its permissions.") from cause
    if not isinstance(data, dict):
        raise FormatError(f"{path.name} must hold one object with keys such as {', '.join(list(DEFAULTS)[:5])}.")
    for key in data:
        if key not in DEFAULTS:
            raise unknown_name(f"key of {path.name}", str(key), DEFAULTS)
    facts = {**DEFAULTS, **data}
    for key, words in _WORDS.items():
        _demand(path, key, facts, words.__contains__, " or ".join(words))
    _demand(path, "pad", facts, _is_pad, f"one of {', '.join(_PADS)} or a colour such as [124, 116, 104]")
    for key in ("mean", "deviation"):
        _demand(path, key, facts, _is_three_numbers, "three numbers")
    _demand(path, "deviation", facts, lambda value: all(number > 0 for number in value), "above 0")
    _demand(path, "scale", facts, lambda value: _is_number(value) and value > 0, "a number above 0, mostly 1 or 255")
    _demand(path, "size_px", facts, lambda value: type(value) is int and 8 <= value <= 4096, "8 to 4096")
    _demand(path, "sigmoid", facts, lambda value: value is None or isinstance(value, bool), "true, false or null")
    _demand(path, "fit_first", facts, lambda value: isinstance(value, bool), "true or false")
    _demand(path, "output", facts, lambda value: isinstance(value, (int, str)), "a number from 0, or a name")
    for key in ("name", "table", "name_column", "category_column"):
        _demand(path, key, facts, lambda value: isinstance(value, str), "a text")
    _demand(path, "table", facts, lambda value: value == Path(value).name != "", "the name of a file beside it")
    _demand(path, "categories", facts, _is_table_of(str), 'words by number or word, e.g. {"4": "character"}')
    _demand(path, "thresholds", facts, _is_table_of((int, float)), 'numbers by category, e.g. {"general": 0.35}')
    _demand(path, "thresholds", facts, lambda value: all(0 <= v <= 1 for v in value.values()), "0 to 1")
    _demand(path, "argmax", facts, lambda value: isinstance(value, list), 'a list of categories, e.g. ["rating"]')
    return _spec(facts, path)


def _spec(facts: Mapping[str, Any], path: Path) -> TaggerSpec:
    output = facts["output"]
    return TaggerSpec(
        name=facts["name"],
        summary=f"Described by {path.name}.",
        source=path.name,
        model_names=("model.onnx", "*.onnx"),
        layout=facts["layout"],
        channels=facts["channels"],
        scale=float(facts["scale"]),
        mean=_three(facts["mean"]),
        deviation=_three(facts["deviation"]),
        size_px=facts["size_px"],
        pad=_pad(facts["pad"]),
        fit_first=facts["fit_first"],
        resample=facts["resample"],
        output=output if isinstance(output, int) else 0,
        output_name=output if isinstance(output, str) else "",
        sigmoid=facts["sigmoid"],
        table_names=(facts["table"],),
        name_column=facts["name_column"],
        category_column=facts["category_column"],
        categories={int(key) if key.isdigit() else key.lower(): word for key, word in facts["categories"].items()},
        argmax=tuple(map(str, facts["argmax"])),
        default_thresholds={key: float(value) for key, value in facts["thresholds"].items()},
    )


def _pad(value: Any) -> Pad:
    if isinstance(value, str):
        return next(word for word in _PADS if word == value)
    return int(value[0]), int(value[1]), int(value[2])


def _three(values: Any) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def _demand(path: Path, key: str, facts: Mapping[str, Any], holds: Callable[[Any], bool], allowed: str) -> None:
    if not holds(facts[key]):
        raise FormatError(f"{key} of {path.name} is {facts[key]!r}, allowed is {allowed}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_three_numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))


def _is_pad(value: Any) -> bool:
    return value in _PADS if isinstance(value, str) else _is_three_numbers(value) and all(0 <= v <= 255 for v in value)


def _is_table_of(kind: type | tuple[type, ...]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(isinstance(entry, kind) for entry in value.values())


def with_stages(spec: TaggerSpec, folder: Path) -> TaggerSpec:
    """The adapter with mean and deviation as the model's own list of stages has them, where that lies in the folder.

    The models of one family differ in them. The list is deepghs' form: stages by name of a split (``test`` counts
    before others), each with its ``type``.

    Raises:
        FormatError: The file is not JSON, or its numbers are none.
        StorageError: It cannot be read.
    """
    path = folder / spec.stages_file
    if not spec.stages_file or not path.is_file():
        return spec
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as cause:
        raise FormatError(f"{path.name} is not valid JSON: {cause}") from cause
    except OSError as cause:
        raise StorageError(f"{path.name} cannot be read ({cause.strerror}); check its permissions.") from cause
    lists = [data.get("test"), *data.values()] if isinstance(data, dict) else [data]
    stages = [stage for stages in lists if isinstance(stages, list) for stage in stages if isinstance(stage, dict)]
    found = next((stage for stage in stages if stage.get("type") == "normalize"), None)
    if found is None:
        return spec
    mean, deviation = (_of_colours(found.get(key), key, path) for key in ("mean", "std"))
    return replace(spec, mean=mean, deviation=deviation)


def _of_colours(value: Any, key: str, path: Path) -> tuple[float, float, float]:
    is_number = isinstance(value, list) and len(value) == 3 and all(isinstance(part, (int, float)) for part in value)
    if not is_number or (key == "std" and not all(part > 0 for part in value)):
        raise FormatError(f"{path.name}: {key} of 'normalize' is {value!r}; it is a list of three numbers")
    return float(value[0]), float(value[1]), float(value[2])
