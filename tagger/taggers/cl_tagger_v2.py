"""cella110n's cl_tagger, version 2."""

from ._spec import TaggerSpec

TAGGER = TaggerSpec(
    name="cl_tagger v2",
    summary="cella110n's cl_tagger 2: model.onnx (with model.onnx.data) and model_vocabulary.json.",
    source="cella110n/cl_tagger_v2 (SigLIP2 at 384 px, stretched, mean and deviation 0.5, logits, threshold 0.55)",
    layout="NCHW",
    channels="RGB",
    scale=1.0,
    mean=(0.5, 0.5, 0.5),
    deviation=(0.5, 0.5, 0.5),
    size_px=384,
    pad="none",
    resample="bilinear",
    output_name="logits",
    sigmoid=True,
    table_names=("model_vocabulary.json",),
    categories={},
    argmax=("rating", "quality"),
    default_thresholds={"general": 0.55},
)
