"""JoyTag, and taggers described as it is: a graph and a list of tags."""

from ._spec import TaggerSpec

TAGGER = TaggerSpec(
    name="JoyTag",
    summary="fancyfeast's JoyTag: model.onnx with top_tags.txt, one tag a line, without categories.",
    source="fancyfeast/joytag (Models.py, its card: white square, bicubic, CLIP's mean and deviation, threshold 0.4)",
    layout="NCHW",
    channels="RGB",
    scale=1.0,
    mean=(0.48145466, 0.4578275, 0.40821073),
    deviation=(0.26862954, 0.26130258, 0.27577711),
    size_px=448,
    pad="white",
    resample="bicubic",
    table_names=("top_tags.txt",),
    category_column="",
    categories={},
    default_thresholds={"general": 0.4},
)
