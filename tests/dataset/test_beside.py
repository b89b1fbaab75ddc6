"""Finding files that belong to pictures."""

import unicodedata

from lora_atelier.dataset.beside import SeenFolders

ENDINGS = (".png", ".jpg")


def test_the_first_that_is_there_as_it_is_written(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("B.PNG", "b.jpg", "c.d.jpg"):
        (tmp_path / "sub" / name).write_bytes(b"")
    name = unicodedata.normalize("NFD", "\u00e9t\u00e9.png")
    (tmp_path / name).write_bytes(b"")
    seen = SeenFolders()
    assert seen.first([f"{tmp_path}/sub/a", f"{tmp_path}/sub/b"], ENDINGS) == tmp_path / "sub" / "B.PNG"
    assert seen.first([f"{tmp_path}/sub/c.d"], ENDINGS) == tmp_path / "sub" / "c.d.jpg"
    assert seen.first([f"{tmp_path}/\u00e9t\u00e9"], ENDINGS).name == name
    assert seen.first([f"{tmp_path}/missing/a", f"{tmp_path}/sub", f"{tmp_path}/sub/c"], ENDINGS) is None


def test_a_folder_is_listed_once(tmp_path):
    seen = SeenFolders()
    assert seen.first([f"{tmp_path}/a"], ENDINGS) is None
    (tmp_path / "a.png").write_bytes(b"")
    assert seen.first([f"{tmp_path}/a"], ENDINGS) is None
    assert SeenFolders().first([f"{tmp_path}/a"], ENDINGS) == tmp_path / "a.png"
