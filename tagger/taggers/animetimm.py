"""The taggers of animetimm, trained with timm on danbooru (dbv4)."""

from ._spec import DANBOORU, TaggerSpec

TAGGER = TaggerSpec(
    name="AnimeTIMM",
    summary="animetimm's dbv4 taggers: model.onnx with selected_tags.csv (a threshold per tag) and preprocess.json.",
    source="animetimm/*.dbv4-full (preprocess.json: white square, ImageNet's mean and deviation unless it says others)",
    layout="NCHW",
    channels="RGB",
    scale=1.0,
    mean=(0.485, 0.456, 0.406),
    deviation=(0.229, 0.224, 0.225),
    size_px=448,
    pad="white",
    fit_first=True,
    resample="bicubic",
    output=2,
    output_name="prediction",
    categories=DANBOORU,
    default_thresholds={"general": 0.35, "character": 0.5},
    hints=("dbv4", "animetimm"),
    stages_file="preprocess.json",
)
