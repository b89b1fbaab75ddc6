"""Labels: broken where a reader expects it, in a font that has the characters."""

import pytest

from lora_atelier.core import fonts
from lora_atelier.core.fonts import font_for
from lora_atelier.core.labels import fit_label, wrap

LONG = "1girl, solo, masterpiece, best quality, looking at viewer, kayoko (blue archive), black hoodie, sitting outside"


def test_wrap_breaks_where_a_reader_expects_it():
    font = font_for("a", 12)
    width = int(font.getlength("my_character_name-"))
    assert wrap("my_character_name-step0001", font, width) == ["my_character_name-", "step0001"]
    assert wrap("red circle blue background", font, int(font.getlength("background")) + 1) == [
        "red circle", "blue", "background",
    ]  # fmt: skip
    assert "".join(wrap("x" * 100, font, 50)) == "x" * 100
    assert wrap("", font, 50) == [""]
    assert wrap("a", font, 1) == ["a"]


def test_words_are_not_lost_unless_marked():
    label = fit_label(LONG, width_px=200, height_px=400, font_px=16)
    assert "".join("".join(label.lines).split()) == "".join(LONG.split())
    cut = fit_label(LONG, width_px=60, height_px=30, font_px=16)
    assert cut.lines[-1].endswith("…")


def test_latin_labels_use_the_bundled_font_everywhere():
    assert font_for("strength 0.5 (a, b)", 14).getname() == fonts._font(None, 14).getname()


def test_cjk_labels_use_a_system_font_where_there_is_one():
    has_cjk = any(fonts._has(path, "漢") for path in fonts._installed())
    if not has_cjk:
        pytest.skip("no CJK font on this system")
    font = font_for("LoRA 漢字", 14)
    assert bytes(font.getmask("漢")) != bytes(font.getmask("\U0010fffe"))
    assert bytes(font.getmask("L")) != bytes(font.getmask("\U0010fffe"))


def test_font_folders_of_every_system(monkeypatch):
    for platform, part in (("win32", "Fonts"), ("darwin", "Library"), ("linux", "fonts")):
        monkeypatch.setattr(fonts.sys, "platform", platform)
        assert any(part in str(folder) for folder in fonts.font_folders())
