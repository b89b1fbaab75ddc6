"""A data set folder with something of everything that the doctor looks for."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def sketch(seed: int, size: tuple[int, int] = (640, 640)) -> Image.Image:
    """A drawing of its own for every seed: some coloured shapes on a coloured ground."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(int(value) for value in random.integers(120, 255, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(7):
        x, y = random.uniform(0, 0.8, 2) * size
        width, height = random.uniform(0.1, 0.5, 2) * size
        colour = tuple(int(value) for value in random.integers(0, 255, 3))
        draw_shape = (draw.ellipse, draw.rectangle)[int(random.integers(2))]
        draw_shape((x, y, x + width, y + height), fill=colour)
    return image


def put(folder: Path, name: str, image: Image.Image, caption: str | None = None, **options: object) -> Path:
    """Writes a picture and its caption."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    image.save(path, **options)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def make_sick_folder(root: Path) -> Path:
    """Writes the folder: two characters whose names share a word, a regularisation folder beside it."""
    mahiro, mihari = root / "set" / "30_OyamaMahiro", root / "set" / "2_OyamaMihari"
    for seed in range(6):
        put(mahiro, f"m{seed}.png", sketch(seed), f"OyamaMahiro, 1girl, aniscreen, smile {seed}")
        put(mihari, f"h{seed}.png", sketch(100 + seed), f"OyamaMihari, 1girl, aniscreen, long hair, hat {seed}")
    put(mahiro, "copy.jpg", sketch(0), "OyamaMahiro, 1girl, aniscreen, copied", quality=85)
    put(mahiro, "late.png", sketch(20), "1girl, aniscreen, OyamaMahiro, long_hair")
    put(mahiro, "none.png", sketch(21), "1girl, aniscreen, sitting, sitting")
    put(mihari, "small.png", sketch(22, (200, 160)), "OyamaMihari, 1girl, aniscreen, tiny")
    put(mihari, "wide.png", sketch(23, (1900, 400)), "OyamaMihari, 1girl, aniscreen, banner")
    put(mihari, "Photo.Jpg", sketch(24), "OyamaMihari, 1girl, aniscreen, photo")
    put(mihari, "twin.png", sketch(25), "OyamaMihari, 1girl, aniscreen, twin")
    put(mihari, "twin.webp", sketch(26))
    put(mihari, "empty.png", sketch(27), "")
    (mihari / "wide.caption").write_text("OyamaMihari, 1girl, aniscreen, otherwise", encoding="utf-8")
    turned = sketch(28, (900, 600)).getexif()
    turned[0x0112] = 6
    put(mihari, "turned.jpg", sketch(28, (900, 600)), "OyamaMihari, 1girl, aniscreen, turned", exif=turned)
    cut = put(mihari, "cut.png", sketch(29), "OyamaMihari, 1girl")
    cut.write_bytes(cut.read_bytes()[:-500])
    broken = put(mihari, "broken.png", sketch(30), "OyamaMihari, 1girl, aniscreen, broken")
    data = bytearray(broken.read_bytes())
    data[len(data) // 2 : -100] = b"\xff" * (len(data) - len(data) // 2 - 100)
    broken.write_bytes(bytes(data))
    (root / "set" / "notes").mkdir()
    reg = root / "reg" / "1_girl"
    for seed in range(4):
        put(reg, f"r{seed}.png", sketch(200 + seed), "1girl, outdoors")
    put(reg, "same.png", sketch(1), "1girl")
    ghost = sketch(31).convert("RGBA")
    ghost.paste((0, 0, 0, 0), (0, 0, 640, 320))
    put(reg, "ghost.png", ghost, "1girl, ghost")
    return root
