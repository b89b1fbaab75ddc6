import os
import re
from dataclasses import replace

import pytest

from lora_atelier.core import roots as roots_module
from lora_atelier.core.errors import AtelierError, InputError, StorageError
from lora_atelier.core.files import Roots


@pytest.fixture
def world(tmp_path):
    for name in ("input/cats", "input/dogs", "datasets/cats", "datasets/birds", "elsewhere/secret"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


@pytest.fixture
def roots(world):
    return Roots(folders={"input": (world / "input",), "datasets": (world / "datasets",), "extra": ()})


KINDS = ("input", "datasets", "extra")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cats", "input/cats"),
        ("birds", "datasets/birds"),
        ("  cats \n", "input/cats"),
        ('"cats"', "input/cats"),
        ("' cats '", "input/cats"),
        ("\u201ccats\u201d", "input/cats"),
        ("./cats/", "input/cats"),
        ("cats\\", "input/cats"),
        (".", "input"),
    ],
)
def test_found_below_the_roots_in_order(world, roots, name, expected):
    assert roots.resolve(name, KINDS) == (world / expected).resolve()


@pytest.mark.parametrize("quote", ["", '"'])
def test_absolute_paths_inside_a_root(world, roots, quote):
    given = f"{quote}{world / 'datasets' / 'birds'}{quote}"
    assert roots.resolve(given, KINDS) == (world / "datasets" / "birds").resolve()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "   ",
        '""',
        "..",
        "../elsewhere",
        "cats/../../elsewhere",
        "cats\\..\\..\\elsewhere",
        "..\\elsewhere",
        "...",
        ".. /elsewhere",
        "cats\0",
        "cats\nmore",
        "\x7f",
        "cats:stream",
        "cats/a:b",
        "C:\\Windows",
        "c:/Windows",
        "C:cats",
        "\\\\server\\share",
        "//server/share",
        "\\\\?\\C:\\Windows",
        "\\\\.\\PhysicalDrive0",
        "CON",
        "con",
        "aux.txt",
        "cats/NUL",
        "nul .txt",
        "LPT1.png",
        "com\u00b2",
        "CONIN$",
        "~/cats",
        "~root",
        "no such folder",
        "\ud800",
        "x" * 5000,  # longer than any name
    ],
)
def test_refused_as_input(roots, name):
    with pytest.raises(InputError) as caught:
        roots.resolve(name, KINDS)
    assert len(str(caught.value)) < 1000
    with pytest.raises(InputError):
        roots.resolve(f'"{name}"', KINDS)


def test_text_only(roots):
    with pytest.raises(InputError, match="must be a text"):
        roots.resolve(3, KINDS)


@pytest.mark.parametrize("name", ["/", "/etc", "elsewhere", "elsewhere/secret"])
def test_outside_says_how_to_allow_a_folder(world, roots, name):
    given = name if name.startswith("/") else str(world / name)
    with pytest.raises(StorageError, match="outside the allowed folders") as caught:
        roots.resolve(given, KINDS)
    assert '"roots" in atelier/settings.json' in str(caught.value)
    exact = replace(roots, settings_file=world / "user" / "settings.json")
    with pytest.raises(StorageError, match=re.escape(f'"roots" in {world / "user" / "settings.json"}')):
        exact.resolve(given, KINDS)
    assert str(world / "input") in str(caught.value)


def test_a_sibling_whose_name_begins_like_the_root_is_outside(world, roots):
    (world / "input2").mkdir()
    with pytest.raises(StorageError):
        roots.resolve(str(world / "input2"), KINDS)


@pytest.mark.skipif(os.name == "nt", reason="links need a right on Windows")
class TestLinks:
    def test_a_link_out_of_the_root_is_refused(self, world, roots):
        (world / "input" / "link").symlink_to(world / "elsewhere")
        for name in ("link", "link/secret", str(world / "input" / "link")):
            with pytest.raises(StorageError, match="outside"):
                roots.resolve(name, KINDS)
        assert not roots.contains(world / "input" / "link" / "secret")

    def test_a_new_name_below_such_a_link_is_refused(self, world, roots):
        (world / "input" / "link").symlink_to(world / "elsewhere")
        with pytest.raises(AtelierError):
            roots.resolve("link/new", KINDS, must_exist=False)

    def test_a_link_into_another_allowed_root_is_followed(self, world, roots):
        (world / "input" / "link").symlink_to(world / "datasets" / "birds")
        assert roots.resolve("link", KINDS) == (world / "datasets" / "birds").resolve()
        with pytest.raises(StorageError):
            roots.resolve("link", ["input"])

    def test_a_root_may_itself_be_a_link(self, world):
        (world / "linked").symlink_to(world / "elsewhere")
        roots = Roots(folders={"input": (world / "linked",)})
        assert roots.resolve("secret", ["input"]) == (world / "elsewhere" / "secret").resolve()
        assert roots.contains(world / "elsewhere" / "secret")

    def test_a_loop_of_links_is_not_found(self, world, roots):
        (world / "input" / "loop").symlink_to(world / "input" / "loop")
        with pytest.raises(AtelierError):
            roots.resolve("loop", KINDS)


def test_new_names_go_below_the_first_root(world, roots):
    assert roots.resolve("new/run", KINDS, must_exist=False) == (world / "input" / "new" / "run").resolve()
    for name in ("what?", "a<b", "end.", "end /x", "a|b"):
        with pytest.raises(InputError, match="cannot be a name on Windows"):
            roots.resolve(name, KINDS, must_exist=False)


def test_a_missing_name_lists_the_nearest(roots):
    with pytest.raises(InputError, match="did you mean 'birds'"):
        roots.resolve("brids", KINDS)
    with pytest.raises(InputError, match="there is no regularisation folder 'brids'"):
        roots.resolve("brids", KINDS, what="regularisation folder")


def test_no_root_of_the_kind(roots):
    with pytest.raises(StorageError, match="no extra folder is set up"):
        roots.resolve("cats", ["extra"])


def test_contains(world, roots):
    assert roots.contains(world / "input" / "cats" / "new.png")
    assert not roots.contains(world / "elsewhere")
    assert not roots.contains(world / "input" / ".." / "elsewhere")
    assert not roots.contains("cats\0")


@pytest.mark.parametrize(
    "name",
    [r"\\evil\share\cats", "//evil/share", "Z:/cats", r"z:\cats", r"\??\UNC\evil\share", r"\Windows"],
)
def test_on_windows_a_path_outside_is_refused_before_it_is_touched(world, roots, monkeypatch, name):
    monkeypatch.setattr(roots_module, "_ON_WINDOWS", True)
    real = os.path.realpath

    def realpath_of_roots(path, **options):
        assert str(path).startswith(str(world)), f"{path} was touched"
        return real(path, **options)

    monkeypatch.setattr(roots_module.os.path, "realpath", realpath_of_roots)
    for must_exist in (True, False):
        with pytest.raises(AtelierError):
            roots.resolve(name, KINDS, must_exist=must_exist)
    assert roots.resolve(str(world / "datasets" / "birds"), KINDS) == world.resolve() / "datasets" / "birds"
