"""The two shipped workflows that make a folder ready for training: a character's and a style's."""

from atelier_tests.helpers.workflow_pages import PICO, Page, Placed

NOT_OF_A_SITE = "lumo_kest, lumo_vard, tavi_strokes"
"""A real tagger does not know a new concept; the built-in one does, as it also judges, and is told not to say so."""
SMALL = {
    "resolution_px": 96,
    "batch_size": 4,
    "bucket_step_px": 8,
    "bucket_min_px": 32,
    "bucket_max_px": 128,
}
"""Sizes of the tiny world, for the nodes that ask how training will be."""
WIDTH = 360
COLUMN = 430
NOTE_WIDTH = 520
LEFT = NOTE_WIDTH + 100
"""Where the first node lies; the note is left of it, where the page opens."""

CHARACTER_NOTE = """## Prepare two characters
From folders to captions that teach: press **Run**. Everything is built in and nothing is written into a data set.

1. **Folders**: two drawn characters, 28 and 12 pictures, with captions, and 48 pictures without them to regularise.
2. **Doctor** says what is wrong with pictures and captions before hours are spent. Read it first.
3. **Tag** puts what the tagger sees behind the captions there are.
4. **Prune**: the preset shows tag by tag what goes and why. What belongs to a character (its body, what it always
   wears) goes into its trigger; place, colour and background stay and can be prompted. Switch *dry run* on to look
   only. Then each folder's trigger goes to the front.
5. **Balance** gives both characters the same weight, and names the folder that is seen most often.
6. **Report**: the contact sheet with the new captions, plots, a profile, the document of tags.

For your own pictures put your folders into **Open Data Set** (the drawing nodes go), your tagger into **Tag**, the
triggers of your folders into **Triggers**, 512 or 1024 px and buckets of 64 px into doctor, balance and report. When
the captions are right, add **Save Captions** or **Export Data Set** behind *Balance*, or go on to **Train LoRA**."""

STYLE_NOTE = """## Prepare a style
From a folder to captions that teach: press **Run**. Everything is built in and nothing is written into a data set.

1. **Folder**: 32 drawn pictures in one style, and 32 plain ones beside them, in a folder of their own.
2. **Doctor** says what is wrong with pictures and captions before hours are spent. Read it first.
3. **Tag**: a style needs a tag for everything that a picture shows; what has no name becomes part of the style.
4. **Prune**: the preset takes out nothing but what you name: here `hatched`, the tagger's word for the style itself.
5. **Balance**: the style is seen half as often as the plain pictures (*weights*), for it is learned sooner.
6. **Report**: the contact sheet with the new captions, plots, a profile, the document of tags.

For your own pictures put your folder into **Open Data Set** (the drawing node goes), your tagger into **Tag**, and 512
or 1024 px and buckets of 64 px into doctor, balance and report. A style without a trigger is fine too: take the trigger
node out, and the style is there whenever the LoRA is on."""


def prepare_character() -> Page:
    """Two characters of unlike size with regularisation pictures, from their folders to a report."""
    page = Page()
    kest = page.add(
        "AtelierPicoDataset", (LEFT, 60), (WIDTH, 170), title="A character, 28 pictures",
        concept="kest", num_images=28, num_reg_images=48, seed=0,
    )  # fmt: skip
    vard = page.add(
        "AtelierPicoDataset", (LEFT, 660), (WIDTH, 170), title="Another, 12 pictures",
        concept="vard", num_images=12, num_reg_images=0, seed=1,
    )  # fmt: skip
    opened = [
        page.add(
            "AtelierOpenDataset", (LEFT + COLUMN, 60), (WIDTH, 540), title="Open the first, with regularisation",
            folder=kest.out(0), reg_folder=kest.out(1),
        ),
        page.add("AtelierOpenDataset", (LEFT + COLUMN, 660), (WIDTH, 540), title="Open the other", folder=vard.out(0)),
    ]  # fmt: skip
    both = page.add(
        "AtelierCombineDatasets", (LEFT + 2 * COLUMN, 60), (WIDTH, 540), title="Both in one",
        dataset_1=opened[0].out(), dataset_2=opened[1].out(),
    )  # fmt: skip
    place = LEFT + 3 * COLUMN
    doctor = page.add(
        "AtelierDatasetDoctor", (place, 60), (WIDTH, 1140), dataset=both.out(), trigger="lumo kest, lumo vard", **SMALL
    )
    place += COLUMN
    tagged = _tagged(page, doctor, place)
    place += COLUMN
    pruned = page.add(
        "AtelierConceptPreset", (place, 60), (WIDTH, 640), title="Prune: the traits of each character",
        dataset=tagged.out(), preset="character", worn=True, remove="ring, cross, eyes, hat, halo, spots",
        dry_run=False,
    )  # fmt: skip
    named = page.add(
        "AtelierStepTrigger", (place, 760), (WIDTH, 440), title="Triggers of the folders",
        dataset=pruned.out(), by_folder="*kest: lumo kest\n*vard: lumo vard", use_folder_name=False, keep_at_front=True,
    )  # fmt: skip
    place += COLUMN
    balanced = page.add(
        "AtelierBalanceRepeats", (place, 60), (WIDTH, 1140), dataset=named.out(), min_repeats=3, batch_size=4,
        resolution_px=96,
    )  # fmt: skip
    _report(page, balanced, place + COLUMN)
    _groups(page, "1 Folders", 3, ("2 Doctor", "3 Tag", "4 Prune", "5 Balance", "6 Report"))
    page.note(CHARACTER_NOTE, (40, 60), (NOTE_WIDTH, 1140))
    return page


def prepare_style() -> Page:
    """A style with plain pictures beside it, from their folders to a report."""
    page = Page()
    drawn = page.add(
        "AtelierPicoDataset", (LEFT, 60), (WIDTH, 170), title="A style, 32 pictures, and 32 plain ones",
        concept="tavi", num_images=32, num_reg_images=32, seed=0, concept_repeats=1,
    )  # fmt: skip
    opened = page.add("AtelierOpenDataset", (LEFT + COLUMN, 60), (WIDTH, 540), folder=drawn.out(0), keep_tokens=0)
    place = LEFT + 2 * COLUMN
    doctor = page.add("AtelierDatasetDoctor", (place, 60), (WIDTH, 1140), dataset=opened.out(), **SMALL)
    place += COLUMN
    tagged = _tagged(page, doctor, place)
    place += COLUMN
    pruned = page.add(
        "AtelierConceptPreset", (place, 60), (WIDTH, 640), title="Prune: the style's own name alone",
        dataset=tagged.out(), preset="style", remove="hatched", dry_run=False,
    )  # fmt: skip
    named = page.add(
        "AtelierStepTrigger", (place, 760), (WIDTH, 440), title="The style's trigger",
        dataset=pruned.out(), by_folder="*tavi: tavi strokes", use_folder_name=False,
    )  # fmt: skip
    place += COLUMN
    balanced = page.add(
        "AtelierBalanceRepeats", (place, 60), (WIDTH, 1140), dataset=named.out(), weights="shapes,2",
        batch_size=4, resolution_px=96,
    )  # fmt: skip
    _report(page, balanced, place + COLUMN)
    _groups(page, "1 Folder", 2, ("2 Doctor", "3 Tag", "4 Prune", "5 Balance", "6 Report"))
    page.note(STYLE_NOTE, (40, 60), (NOTE_WIDTH, 1140))
    return page


def _tagged(page: Page, doctor: Placed, place: int) -> Placed:
    return page.add(
        "AtelierTagDataset", (place, 60), (WIDTH, 1140), dataset=doctor.out(), tagger_name=PICO, mode="append",
        exclude=NOT_OF_A_SITE,
    )  # fmt: skip


def _report(page: Page, balanced: Placed, place: int) -> None:
    page.add(
        "AtelierContactSheet", (place, 60), (WIDTH, 560), dataset=balanced.out(), pictures=24, columns=6, cell_px=160
    )
    page.add("AtelierTagPlots", (place, 680), (WIDTH, 520), dataset=balanced.out(), top=25, matrix=16)
    page.add("AtelierDatasetProfile", (place + COLUMN, 60), (WIDTH, 560), dataset=balanced.out(), **SMALL)
    page.add("AtelierTagDocument", (place + COLUMN, 680), (WIDTH, 520), dataset=balanced.out())


def _groups(page: Page, first: str, columns: int, others: tuple[str, ...]) -> None:
    """Frames: the first over some columns, the last over two, the others over one."""
    page.group(first, (LEFT - 20, -10, columns * COLUMN - 30, 1260), "#3f789e")
    colours = ("#b06634", "#3f789e", "#a1309b", "#3f789e", "#8A8")
    for number, (title, colour) in enumerate(zip(others, colours, strict=True)):
        width = COLUMN - 30 + (COLUMN if number == len(others) - 1 else 0)
        page.group(title, (LEFT - 20 + (columns + number) * COLUMN, -10, width, 1260), colour)
