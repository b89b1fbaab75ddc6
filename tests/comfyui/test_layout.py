"""The shipped pages as the real page lays them out: no node is larger than its place, or leaves its group."""

import json
from pathlib import Path
from typing import Any

import pytest

from atelier_tests.helpers.browser import SCREENSHOTS, open_template
from atelier_tests.helpers.comfy_server import PACK, PACK_FOLDER, Comfy

NAMES = sorted(path.stem for path in (PACK / "workflows").glob("*.json"))
_SIZES = """() => window.app.graph._nodes.map(n => {
  const widgets = (n.widgets || []).map(w => [w.name, w.type, w.computedHeight || null, !!w.hidden]);
  return {id: n.id, type: n.type, size: [...n.size], least: [...n.computeSize()], widgets};
})"""


@pytest.mark.parametrize("name", NAMES)
def test_every_node_has_the_room_it_takes(comfy: Comfy, page: Any, name: str, tmp_path: Path) -> None:
    open_template(comfy, page, PACK_FOLDER, name)
    page.wait_for_timeout(1500)
    found = {node["id"]: node for node in page.evaluate(_SIZES)}
    place = Path(SCREENSHOTS or tmp_path)
    (place / f"{name}-sizes.json").write_text(json.dumps(list(found.values())), encoding="utf-8")
    saved = json.loads((PACK / "workflows" / f"{name}.json").read_text(encoding="utf-8"))["nodes"]
    for node in saved:
        if node["type"] != "MarkdownNote":
            taken, given = found[node["id"]]["size"], node["size"]
            assert taken[0] <= given[0] + 1, (node["type"], taken, given)
            assert taken[1] <= given[1] + 1, (node["type"], taken, given)
