"""A tagger of a few kilobytes in the WD14 contract, whose weights prove how the picture reached it."""

import csv
from pathlib import Path

import numpy as np

ROWS = (
    ("general", 9), ("sensitive", 9), ("questionable", 9), ("explicit", 9),
    ("red", 0), ("green", 0), ("blue", 0), ("white_left", 0), ("white_top", 0), ("bright", 0), ("dark", 0),
    ("hatsune_miku_(vocaloid)", 4), ("^_^", 0), ("(o)_(o)", 0), ('say_"a,b"', 0), ("long_hair", 0), ("spare", 0),
)  # fmt: skip
"""Name and category of each output; the character lies among the general ones on purpose."""


def write_table(path: Path, rows=ROWS, header=("tag_id", "name", "category", "count")) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        values = {"tag_id": 1, "count": 5}
        for name, category in rows:
            values.update(name=name, category=category)
            writer.writerow([values[column] for column in header])


def _weights() -> tuple[np.ndarray, np.ndarray]:
    """Per tag: weights of the nine means (BGR of the whole, the left and the top edge, 0..255) and a bias."""
    names = [name for name, _ in ROWS]
    weights = np.zeros((9, len(names)), np.float32)
    bias = np.full(len(names), -8.0, np.float32)
    for name, blue, green, red in (("red", -1, -1, 2), ("green", -1, 2, -1), ("blue", 2, -1, -1)):
        weights[:3, names.index(name)] = np.array([blue, green, red], np.float32) / 32.0
        bias[names.index(name)] = -4.0
    for name, offset in (("white_left", 3), ("white_top", 6)):
        weights[offset : offset + 3, names.index(name)] = 1.0 / 8.0
        bias[names.index(name)] = -90.0  # only three means near 255 lift it
    weights[:3, names.index("bright")] = 0.02
    bias[names.index("bright")] = -7.0
    weights[:3, names.index("dark")] = -0.1
    bias[names.index("dark")] = 4.0
    for name, value in (("sensitive", 1.0), ("general", 0.0), ("hatsune_miku_(vocaloid)", 3.0), ("^_^", 2.0)):
        bias[names.index(name)] = value
    for name in ("(o)_(o)", 'say_"a,b"', "long_hair"):
        bias[names.index(name)] = 1.0
    return weights, bias


def write_tagger(folder: Path, *, size_px: int | str = 16, batch: int | str = "N", sigmoid: bool = True) -> Path:
    """Write model.onnx and selected_tags.csv; return the folder."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir(parents=True, exist_ok=True)
    weights, bias = _weights()
    constants = {
        "weights": weights,
        "bias": bias,
        "edge_start": np.array([0], np.int64),
        "edge_end": np.array([2], np.int64),
        "left_axis": np.array([2], np.int64),
        "top_axis": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Slice", ["input_1:0", "edge_start", "edge_end", "left_axis"], ["left"]),
        helper.make_node("Slice", ["input_1:0", "edge_start", "edge_end", "top_axis"], ["top"]),
        *(
            helper.make_node("ReduceMean", [source], [f"{name}_mean"], axes=[1, 2], keepdims=0)
            for source, name in (("input_1:0", "all"), ("left", "left"), ("top", "top"))
        ),
        helper.make_node("Concat", ["all_mean", "left_mean", "top_mean"], ["means"], axis=1),
        helper.make_node("Gemm", ["means", "weights", "bias"], ["logits"]),
        helper.make_node("Sigmoid" if sigmoid else "Identity", ["logits"], ["predictions_sigmoid"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tagger",
        [helper.make_tensor_value_info("input_1:0", TensorProto.FLOAT, [batch, size_px, size_px, 3])],
        [helper.make_tensor_value_info("predictions_sigmoid", TensorProto.FLOAT, [batch, len(ROWS)])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    write_table(folder / "selected_tags.csv")
    return folder
