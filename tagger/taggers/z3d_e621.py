"""Z3D-E621-Convnext: a furry tagger in the WD14 form."""

from ._spec import TaggerSpec

TAGGER = TaggerSpec(
    name="Z3D-E621",
    summary="Z3D-E621-Convnext: model.onnx with tags-selected.csv, e621 tags without usable categories.",
    source="toynya/Z3D-E621-Convnext (files; WD14's preparation, thresholds 0.25 to 0.5 in use)",
    layout="NHWC",
    channels="BGR",
    scale=255.0,
    size_px=448,
    pad="white",
    resample="bicubic",
    table_names=("tags-selected.csv",),
    category_column="",
    categories={},
    default_thresholds={"general": 0.5},
)
