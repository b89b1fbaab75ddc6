"""The WD14 family exported from its timm twin: channels first, normalised, logits."""

from ._spec import DANBOORU, TaggerSpec
from .wd14 import THRESHOLDS

TAGGER = TaggerSpec(
    name="WD14 (timm)",
    summary="SmilingWolf's taggers v3 and their descendants exported from timm: model.onnx with selected_tags.csv.",
    source="config.json of SmilingWolf/wd-*-v3 (mean and deviation 0.5), whose channels the card swaps to BGR",
    layout="NCHW",
    channels="BGR",
    scale=1.0,
    mean=(0.5, 0.5, 0.5),
    deviation=(0.5, 0.5, 0.5),
    size_px=448,
    pad="white",
    resample="bicubic",
    categories=DANBOORU,
    default_thresholds={"general": 0.35, "character": 0.85},
    thresholds=THRESHOLDS,
)
