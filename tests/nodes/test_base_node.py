"""The base node: what its number format promises is what the code does."""

from pathlib import Path

from atelier_tests.helpers.fake_host import FakeHost
from atelier_tests.helpers.sources import ROOT
from lora_atelier import NODE_CLASS_MAPPINGS
from lora_atelier.nodes.host import set_host


def test_the_number_format_is_for_drawing_and_training_has_its_own(tmp_path: Path) -> None:
    set_host(FakeHost(tmp_path))
    try:
        shown = NODE_CLASS_MAPPINGS["AtelierOpenBase"].INPUT_TYPES()["required"]["dtype"][1]["tooltip"]
        assert "precision" in NODE_CLASS_MAPPINGS["AtelierTrainLora"].INPUT_TYPES()["required"]
    finally:
        set_host(None)
    readers = [
        path.relative_to(ROOT).as_posix()
        for folder in ("trainer", "nodes")
        for path in (ROOT / folder).rglob("*.py")
        if "base.dtype" in path.read_text(encoding="utf-8") or "base.torch_dtype" in path.read_text(encoding="utf-8")
    ]
    assert readers == ["nodes/host/local.py"]  # whoever adds a reader tells it in the tooltip, too
    assert "command line" in shown
    assert "training goes by its own 'precision'" in shown
