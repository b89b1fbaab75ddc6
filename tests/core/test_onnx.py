import sys

import numpy as np
import pytest

from lora_atelier.core.errors import FormatError, MissingLibraryError, StorageError
from lora_atelier.core.onnx import open_session

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def graph_file(tmp_path):
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "x"], ["squares"]), helper.make_node("Neg", ["x"], ["negatives"])],
        "squares",
        [helper.make_tensor_value_info("x", kind, ["batch", 3])],
        [helper.make_tensor_value_info(name, kind, ["batch", 3]) for name in ("squares", "negatives")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return path


def test_runs_and_describes_itself(graph_file):
    session = open_session(graph_file, threads=1)
    assert [(value.name, value.shape, value.dtype) for value in session.inputs] == [("x", (None, 3), "tensor(float)")]
    assert [value.name for value in session.outputs] == ["squares", "negatives"]
    assert "CPUExecutionProvider" in session.providers
    x = np.array([[1, 2, 3]], dtype=np.float32)
    squares, negatives = session.run({"x": x})
    assert squares.tolist() == [[1, 4, 9]]
    assert negatives.tolist() == [[-1, -2, -3]]
    assert session.run({"x": x}, ["negatives"])[0].tolist() == [[-1, -2, -3]]


@pytest.mark.parametrize("feeds", [{}, {"y": np.zeros((1, 3), np.float32)}, {"x": np.zeros((1, 4), np.float32)}])
def test_wrong_arrays(graph_file, feeds):
    with pytest.raises(FormatError, match="could not run"):
        open_session(graph_file).run(feeds)


@pytest.mark.parametrize("content", [b"", b"<html>", b"\0" * 100])
def test_files_that_are_no_graph(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"model\.onnx is not an ONNX graph"):
        open_session(path)


def test_missing_file(tmp_path):
    with pytest.raises(StorageError, match="no ONNX file"):
        open_session(tmp_path / "model.onnx")


def test_missing_library_names_the_command(graph_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingLibraryError, match="pip install onnxruntime"):
        open_session(graph_file)
