"""The WD14 family: SmilingWolf's taggers v1.4 to v3 in ONNX, and every tagger that keeps their contract."""

from collections.abc import Mapping

from ._spec import DANBOORU, TaggerSpec


def _published(general: float, character: float = 0.85) -> Mapping[str, float]:
    return {"general": general, "character": character}


THRESHOLDS: Mapping[str, Mapping[str, float]] = {
    "wd-v1-4-vit-tagger-v2": _published(0.3537),
    "wd-v1-4-convnext-tagger-v2": _published(0.3685),
    "wd-v1-4-convnextv2-tagger-v2": _published(0.3710),
    "wd-v1-4-swinv2-tagger-v2": _published(0.3771),
    "wd-v1-4-moat-tagger-v2": _published(0.3771),
    "wd-vit-large-tagger-v3": _published(0.2606),
    "wd-eva02-large-tagger-v3": _published(0.5296),
    "wd-vit-tagger-v3": _published(0.2614),
    "wd-swinv2-tagger-v3": _published(0.2653),
    "wd-convnext-tagger-v3": _published(0.2682),
    "wd-v1-4-vit-tagger": _published(0.35),
    "wd-v1-4-convnext-tagger": _published(0.35),
    "wd-eva02-tagger-2026-canary": _published(0.6094),
    "pico": _published(0.5, 0.5),
}
"""Where precision equals recall, as the model cards give it; the first part of a name that fits counts."""

TAGGER = TaggerSpec(
    name="WD14",
    summary="SmilingWolf's booru taggers: model.onnx with selected_tags.csv.",
    source="Model cards of SmilingWolf/wd-* (preparation, thresholds where precision equals recall)",
    layout="NHWC",
    channels="BGR",
    scale=255.0,
    size_px=448,
    pad="white",
    resample="bicubic",
    categories=DANBOORU,
    default_thresholds=_published(0.35),
    thresholds=THRESHOLDS,
)
