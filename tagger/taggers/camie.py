"""Camais03's Camie tagger v2."""

from ._spec import TaggerSpec

TAGGER = TaggerSpec(
    name="Camie",
    summary="Camie tagger v2: camie-tagger-v2.onnx with camie-tagger-v2-metadata.json.",
    source="Camais03/camie-tagger-v2 (onnx_inference.py; the refined head is the second output)",
    model_names=("camie-tagger-v2.onnx", "model.onnx", "camie*.onnx"),
    layout="NCHW",
    channels="RGB",
    scale=1.0,
    mean=(0.485, 0.456, 0.406),
    deviation=(0.229, 0.224, 0.225),
    size_px=512,
    pad=(124, 116, 104),
    fit_first=True,
    resample="lanczos",
    output=1,
    output_name="refined",
    table_names=("camie-tagger-v2-metadata.json", "*-metadata.json", "metadata.json"),
    categories={},
    default_thresholds={"general": 0.492, "character": 0.614},
)
