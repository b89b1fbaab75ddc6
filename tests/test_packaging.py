"""pyproject.toml against the tree."""

import re

import pytest

import lora_atelier
from atelier_tests.helpers.sources import ROOMS, ROOT

tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")

NOT_PACKAGES = {"api_workflows", "tests", "bench", "build", "docs", "web", "locales", "workflows", "__pycache__"}
COMES_WITH_COMFYUI = {"torch", "torchvision", "numpy", "pillow", "safetensors", "transformers", "tokenizers", "scipy"}


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def lines_of(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    return [line.split("#")[0].strip() for line in text.splitlines() if line.split("#")[0].strip()]


def normal(requirement):
    return re.split(r"[\s<>=!~;\[]", requirement)[0].lower().replace("_", "-")


def test_packages_are_the_folders(project):
    on_disk = {"lora_atelier"}
    for room in ROOMS:
        folders = [ROOT / room, *(path for path in (ROOT / room).rglob("*") if path.is_dir())]
        for folder in folders:
            if any(folder.glob("*.py")):
                on_disk.add(".".join(("lora_atelier", *folder.relative_to(ROOT).parts)))
                assert (folder / "__init__.py").exists(), folder
    assert sorted(project["tool"]["setuptools"]["packages"]) == sorted(on_disk)


def test_no_other_folder_holds_code():
    for folder in ROOT.iterdir():
        if folder.is_dir() and not folder.name.startswith(".") and folder.name not in {*ROOMS, *NOT_PACKAGES}:
            assert not list(folder.rglob("*.py")), f"{folder.name} is neither a room nor left out on purpose"


def test_package_data_exists(project):
    for package, patterns in project["tool"]["setuptools"]["package-data"].items():
        folder = ROOT.joinpath(*package.split(".")[1:])
        for pattern in patterns:
            assert any(folder.glob(pattern)), f"{package}: nothing matches {pattern}"


def test_requirements_hold_lower_bounds_of_what_comfyui_lacks():
    for line in lines_of("requirements.txt"):
        assert re.fullmatch(r"[A-Za-z0-9_.\-]+>=[0-9][0-9.]*(; python_version < \"3\.1[0-9]\")?", line), line
        assert normal(line) not in COMES_WITH_COMFYUI, line


def test_one_list_of_requirements(project):
    assert "dependencies" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["dependencies"] == {"file": ["requirements.txt"]}


def test_everything_installed_for_tests_is_pinned(project):
    pinned = {normal(line): line for line in lines_of("tests/constraints.txt")}
    assert all("==" in line for line in pinned.values())
    assert pinned["torch"] == "torch==2.13.0"
    extras = project["project"]["optional-dependencies"]
    wanted = [*lines_of("requirements.txt"), *(line for extra in extras.values() for line in extra)]
    assert not [line for line in wanted if normal(line) not in pinned]


def test_registry_entry(project):
    comfy = project["tool"]["comfy"]
    assert comfy["PublisherId"]
    assert comfy["DisplayName"] == "LoRA Atelier"
    assert "web" not in comfy, "the folder would be served twice and the script loaded twice"
    assert (ROOT / lora_atelier.WEB_DIRECTORY).is_dir()
    assert re.fullmatch(r">=\d+\.\d+\.\d+", comfy["requires-comfyui"])
    assert project["project"]["urls"]["Repository"].startswith("https://")
    assert project["project"]["scripts"] == {"lora-atelier": "lora_atelier.headless.cli:main"}


def test_the_changelog_knows_the_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+", lora_atelier.__version__)
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{lora_atelier.__version__}]" in changelog


def test_the_readme_opens_with_the_two_commands():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```\w*\n(.*?)```", readme, re.DOTALL)
    assert block is not None
    assert block.group(1) == "make quickstart\nmake test\n"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("quickstart", "test", "lint", "bench", "pico"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_pictures_named_in_the_readme_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", readme):
        assert (ROOT / name).is_file(), name
