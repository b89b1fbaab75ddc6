"""Taggers of e621's tags in the WD14 form: the same files, but its category numbers mean what they mean on e621."""

from ._spec import TaggerSpec

TAGGER = TaggerSpec(
    name="WD14 (e621)",
    summary="nzs234's eva02_large_E621 and others like it: model.onnx with selected_tags.csv, e621 categories.",
    source="nzs234/eva02_large_E621_FULL_V1 (WD14's preparation, its thresholds); category numbers of e621's API",
    layout="NHWC",
    channels="BGR",
    scale=255.0,
    size_px=448,
    pad="white",
    resample="bicubic",
    categories={
        0: "general",
        1: "artist",
        2: "meta",
        3: "copyright",
        4: "character",
        5: "species",
        6: "meta",
        7: "meta",
        8: "meta",
        9: "rating",
    },
    default_thresholds={"general": 0.60, "character": 0.65, "species": 0.60},
    hints=("eva02-large-e621", "e621-full"),
)
