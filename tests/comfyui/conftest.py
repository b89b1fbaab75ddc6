"""These tests need COMFYUI_DIR (a checkout) and COMFYUI_PYTHON (a Python with its and our requirements)."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atelier_tests.helpers.browser import opened_page
from atelier_tests.helpers.comfy_server import Comfy


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Everything in this folder is of the comfyui tier."""
    here = Path(__file__).parent
    missing = pytest.mark.skip(reason="COMFYUI_DIR is not set to a ComfyUI checkout")
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.comfyui)
            if not os.environ.get("COMFYUI_DIR"):
                item.add_marker(missing)


@pytest.fixture(scope="session")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comfy]:
    """A server for the whole session."""
    server = Comfy(tmp_path_factory.mktemp("comfyui"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def page(comfy: Comfy, tmp_path: Path) -> Iterator[Any]:
    """Its page in a real browser."""
    with opened_page(comfy, tmp_path / "profile") as opened:
        yield opened
