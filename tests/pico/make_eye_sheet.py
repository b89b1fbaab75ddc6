"""Draws the 100 pictures that were labelled by eye: `python tests/pico/make_eye_sheet.py`.

Half of the prompts ask for a triple the base never saw; they carry nothing, one or several accessories. Run it again
after a new base is made, look at `eye_pictures.png`, and write what you see into `eye_labels.json`.
"""

import random
from pathlib import Path

from PIL import Image

from lora_atelier.pico import export, generate, judge, world

NUMBER, COLUMNS, SIDE_PX = 100, 10, world.NATIVE_PX
SHEET = Path(__file__).parent / "eye_pictures.png"


def prompts() -> list[str]:
    """Mixed prompts, plain ones too."""
    rng = random.Random("pictures for the eye")
    found = []
    for index in range(NUMBER):
        scene = world.random_scene(rng, held_out=bool(index % 2), bucket_px=(SIDE_PX, SIDE_PX), count=1)
        found.append(", ".join(scene.triple) if index % 4 == 0 else world.caption(scene, rng, keep=0.8))
    return found


def main() -> None:
    """Draw and save the sheet, ten pictures a row."""
    pictures = judge.paint_all(generate.Painter(*export.load_base(judge.BASE_FILE)), prompts(), first_seed=500)
    sheet = Image.new("RGB", (COLUMNS * SIDE_PX, NUMBER // COLUMNS * SIDE_PX))
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % COLUMNS * SIDE_PX, index // COLUMNS * SIDE_PX))
    sheet.save(SHEET, optimize=True)


if __name__ == "__main__":
    main()
