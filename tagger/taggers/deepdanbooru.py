"""KichangKim's DeepDanbooru in its ONNX exports."""

from ._spec import TaggerSpec

TAGGER = TaggerSpec(
    name="DeepDanbooru",
    summary="DeepDanbooru v3 as an ONNX export: deepdanbooru.onnx with tags.txt (and tags-character.txt).",
    source="KichangKim/DeepDanbooru (commands/evaluate.py: area resize in its proportions, edges repeated, 0..1)",
    model_names=("deepdanbooru.onnx", "model.onnx", "*deepdanbooru*.onnx"),
    layout="NHWC",
    channels="RGB",
    scale=1.0,
    size_px=512,
    pad="edge",
    fit_first=True,
    resample="box",
    sigmoid=False,
    table_names=("tags.txt",),
    category_column="",
    categories={},
    default_thresholds={"general": 0.5},
)
