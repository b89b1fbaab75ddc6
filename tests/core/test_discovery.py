import logging
import sys

import pytest

from lora_atelier.core.discovery import discover, discover_tolerant, module_names
from lora_atelier.core.errors import AtelierError


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    folder = tmp_path / "plugin_folder_of_a_test"
    (folder / "sub").mkdir(parents=True)
    files = {
        "__init__": "",
        "zeta": "THING = 'z'",
        "alpha": "THING = 'a'",
        "_shared": "raise RuntimeError('must not be imported')",
        "sub/__init__": "",
    }
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.startswith(folder.name)]:
        del sys.modules[name]


def test_sorted_by_file_name_without_shared_files_and_folders(plugins):
    found = discover(plugins.name, "THING")
    assert list(found.items()) == [("alpha", "a"), ("zeta", "z")]


def test_missing_export_names_the_file(plugins):
    (plugins / "other.py").write_text("", encoding="utf-8")
    with pytest.raises(AtelierError, match=r"other\.py exports no THING"):
        discover(plugins.name, "THING")


def test_a_broken_file_is_not_swallowed(plugins):
    (plugins / "broken.py").write_text("1 / 0", encoding="utf-8")
    with pytest.raises(ZeroDivisionError):
        discover(plugins.name, "THING")


def test_tolerant_logs_the_traceback_and_goes_on(plugins, caplog):
    (plugins / "broken.py").write_text("1 / 0", encoding="utf-8")
    with caplog.at_level(logging.ERROR):
        found = discover_tolerant(plugins.name, "THING", logging.getLogger("test"))
    assert list(found) == ["alpha", "zeta"]
    assert "broken.py" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_module_names_imports_no_plugin(plugins):
    (plugins / "broken.py").write_text("1 / 0", encoding="utf-8")
    assert module_names(plugins.name) == ["alpha", "broken", "zeta"]
