"""PixAI tagger v0.9 in its ONNX export."""

from ._spec import DANBOORU, TaggerSpec

TAGGER = TaggerSpec(
    name="PixAI v0.9",
    summary="PixAI's tagger v0.9: model.onnx with selected_tags.csv and thresholds.csv.",
    source="deepghs/pixai-tagger-v0.9-onnx (preprocess.json, thresholds.csv)",
    layout="NCHW",
    channels="RGB",
    scale=1.0,
    mean=(0.5, 0.5, 0.5),
    deviation=(0.5, 0.5, 0.5),
    size_px=448,
    pad="none",
    resample="bilinear",
    output=2,
    output_name="prediction",
    categories=DANBOORU,
    default_thresholds={"general": 0.30, "character": 0.85},
    hints=("pixai",),
)
