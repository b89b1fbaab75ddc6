"""cella110n's cl_tagger, versions 1.x."""

from ._spec import TaggerSpec

TAGGER = TaggerSpec(
    name="cl_tagger",
    summary="cella110n's cl_tagger 1.x: model.onnx or model_optimized.onnx with tag_mapping.json.",
    source="cella110n/cl_tagger (its sample program): white square, BGR, mean and deviation 0.5, logits",
    model_names=("model.onnx", "model_optimized.onnx"),
    layout="NCHW",
    channels="BGR",
    scale=1.0,
    mean=(0.5, 0.5, 0.5),
    deviation=(0.5, 0.5, 0.5),
    size_px=448,
    pad="white",
    resample="bicubic",
    sigmoid=True,
    table_names=("tag_mapping.json",),
    categories={},
    argmax=("rating", "quality"),
    default_thresholds={"general": 0.55, "character": 0.60},
)
