"""PixAI tagger v1.0 in its ONNX exports."""

from ._spec import TaggerSpec

TAGGER = TaggerSpec(
    name="PixAI v1.0",
    summary="PixAI's tagger v1.0: model.onnx with the config.json (tags, tags_split) of its repository.",
    source="pixai-labs/pixai-tagger-v1.0 (RescalePadProcessor of tagger_pipeline.py; thresholds of its card)",
    layout="NCHW",
    channels="RGB",
    scale=1.0,
    mean=(0.5, 0.5, 0.5),
    deviation=(0.5, 0.5, 0.5),
    size_px=1008,
    pad="black",
    fit_first=True,
    resample="bilinear",
    table_names=("config.json", "tags.json"),
    categories={"style": "artist"},
    default_thresholds={
        "general": 0.17,
        "artist": 0.15,
        "copyright": 0.24,
        "character": 0.27,
        "meta": 0.17,
        "rating": 0.41,
    },  # fmt: skip
    hints=("pixai",),
)
