"""The arrows between the rooms, and who may touch ComfyUI."""

import pytest

from atelier_tests.helpers.sources import ROOMS, imports_of, shipped_sources

MIDDLE = {"dataset", "networks", "families"}
WORKSHOPS = {"trainer", "tagger", "merger", "evaluator"}
ALLOWED = {
    "": {"nodes", "headless"},
    "core": {"core"},
    **{room: {room, "core"} for room in MIDDLE},
    **{room: {room, "core", *MIDDLE} for room in WORKSHOPS},
    "nodes": {"nodes", "core", *MIDDLE, *WORKSHOPS},
    "headless": set(ROOMS),
    "pico": {"pico", "core", *MIDDLE, *WORKSHOPS},
}
EXTRA = {"nodes/pico.py": {"pico"}}
"""The drawing nodes put a pico data set into place; nothing else of the nodes may import pico."""

COMFYUI = {
    "app",
    "comfy",
    "comfy_api",
    "comfy_api_nodes",
    "comfy_execution",
    "comfy_extras",
    "execution",
    "folder_paths",
    "latent_preview",
    "nodes",
    "server",
}
COMFYUI_FILES = (
    "nodes/host/comfy.py",
    "nodes/host/comfy_pico.py",
    "nodes/host/comfy_steps.py",
    "nodes/host/comfy_loading.py",
    "nodes/host/comfy_variant.py",
)
LATE = {"diffusers", "matplotlib", "onnx", "onnxruntime", "pytorch_optimizer", "transformers"}
"""Libraries that ComfyUI may lack or that are slow to import; no node may pull them in while it loads."""

SOURCES = {source.name: source for source in shipped_sources()}


@pytest.mark.parametrize("name", SOURCES)
def test_imports_follow_the_arrows(name):
    source = SOURCES[name]
    allowed = ALLOWED[source.room] | EXTRA.get(name, set())
    wrong = [
        f"{name}:{found.line} imports {found.name}"
        for found in imports_of(source)
        if found.own and found.name.partition(".")[0] in ROOMS and found.name.partition(".")[0] not in allowed
    ]
    assert not wrong


@pytest.mark.parametrize("name", SOURCES)
def test_own_modules_are_imported_relatively(name):
    wrong = [
        f"{name}:{found.line} imports {found.name}"
        for found in imports_of(SOURCES[name])
        if not found.own
        and found.name.partition(".")[0] in {"lora_atelier", "tests", "atelier_tests", *ROOMS} - COMFYUI
    ]
    assert not wrong


@pytest.mark.parametrize("name", SOURCES)
def test_only_the_comfyui_host_touches_comfyui_and_only_inside_functions(name):
    for found in imports_of(SOURCES[name]):
        if not found.own and found.name.partition(".")[0] in COMFYUI:
            assert name in COMFYUI_FILES, f"{name}:{found.line} imports {found.name}"
            assert found.inside_function, f"{name}:{found.line} imports {found.name} while it loads"


@pytest.mark.parametrize("room", ["core", "nodes"])
def test_slow_libraries_are_imported_inside_functions(room):
    for source in shipped_sources():
        if source.room == room:
            late = [found for found in imports_of(source) if found.name.partition(".")[0] in LATE]
            assert all(found.inside_function for found in late), f"{source.name}: {late}"


def test_every_room_has_its_place():
    assert set(ALLOWED) == {"", *ROOMS}
    assert {source.room for source in shipped_sources()} == {"", *ROOMS}
