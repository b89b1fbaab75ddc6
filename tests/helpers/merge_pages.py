"""The shipped workflow that merges: a recipe of two bases, a dry run, a file, and a live merge by blocks beside it."""

from atelier_tests.helpers.workflow_pages import PICO, Page, Placed

WIDTH = 360
COLUMN = 430
NOTE_WIDTH = 520
LEFT = NOTE_WIDTH + 100
PROMPT = "lumo kest, red, blue background"
RECIPE = """\
# __A__ is the base, __B__ the base that has learned a character.
# Two models: (1 - M) A + M B.   Three: A + M (B - C).
half = __A__ + __B__, 0.5
OUT = half + __B__ + __A__, 0.25, fp16, safetensors
"""
NOTE = """## Merge by recipe
Two checkpoints become one, by lines of text: press **Run**. Everything is built in; it takes a few minutes, most of
them for the small training that gives us a second model.

1. **Two models**: the tiny base, and the same base with a LoRA of a new character written into it.
2. **Recipe**: each line makes a model, and later lines may use earlier ones. Nothing in between is written. The report
   shows how much of every model is in the result, and warns of chains that go too far.
3. **Dry run**: tensors, repairs, disk, memory and time before anything is done.
4. **Save** writes the result with the whole recipe in it; *Read Merge Recipe* takes it out again. The same recipe of
   the same models is never written twice.
5. **Blocks**: the same two models, mixed by block and without a file.
6. **Look**: the base, the saved recipe, the live merge; same prompt, same seed.

For your own models put checkpoints into **Open Base Model** and wire them to *a*, *b*, *c*, *d* of the recipe, or write
their file names straight into its lines."""


def merge_recipe() -> Page:
    """A recipe of two bases, saved, beside a live merge by blocks."""
    page = Page()
    base = page.add("AtelierOpenBase", (LEFT, 60), (WIDTH, 170), base_name=PICO, dtype="fp32")
    drawn = page.add(
        "AtelierPicoDataset", (LEFT, 290), (WIDTH, 170), concept="kest", num_images=28, num_reg_images=56, seed=0,
        concept_repeats=10,
    )  # fmt: skip
    data = page.add(
        "AtelierOpenDataset", (LEFT, 520), (WIDTH, 540), folder=drawn.out(0), reg_folder=drawn.out(1), keep_tokens=1
    )
    place = LEFT + COLUMN
    network = page.add("AtelierNetworkLora", (place, 60), (WIDTH, 300), rank=16, alpha=16.0)
    optimizer = page.add(
        "AtelierOptimizerAdamw", (place, 420), (WIDTH, 420), lr_unet=4e-3, lr_text_encoder=3e-3, schedule="cosine",
        warmup_steps=10, beta2=0.99, weight_decay=0.01,
    )  # fmt: skip
    train = page.add(
        "AtelierTrainLora", (place, 900), (WIDTH, 900), base=base.out(), dataset=data.out(), network=network.out(),
        optimizer=optimizer.out(), run_name="merge-child", steps=160, batch_size=8, resolution_px=96, seed=0,
        bucket_step_px=8, bucket_min_px=32, bucket_max_px=128,
    )  # fmt: skip
    place += COLUMN
    child = page.add(
        "AtelierMergeLorasIntoCheckpoint", (place, 60), (WIDTH, 420), title="The second model",
        base=base.out(), lora_1=train.out(1), dry_run=False, file_name="atelier/pico-kest",
    )  # fmt: skip
    recipe = page.add("AtelierMergeRecipe", (place, 560), (WIDTH, 560), recipe=RECIPE, a=base.out(), b=child.out(0))
    page.add("AtelierCheckMerge", (place, 1180), (WIDTH, 520), model=recipe.out(0), widgets={"name": "atelier/merged"})
    place += COLUMN
    saved = page.add(
        "AtelierSaveMerge", (place, 60), (WIDTH, 640), model=recipe.out(0),
        widgets={"name": "atelier/merged", "title": "pico and kest"},
    )  # fmt: skip
    weights = page.add(
        "AtelierMergeBlocks", (place, 800), (WIDTH, 420), weights="GRAD_A TE=0.5 OUT=1", elements="OUT03-OUT05:attn2:1"
    )
    mixed = page.add(
        "AtelierMergeWeightedSum", (place, 1280), (WIDTH, 190), a=base.out(), b=child.out(0), weights=weights.out(0)
    )
    live = page.add("AtelierMergeToModel", (place, 1530), (WIDTH, 200), model=mixed.out(0))
    place += COLUMN
    first = page.add("AtelierBaseToModel", (place, 60), (WIDTH, 90), title="The base", base=base.out())
    merged = page.add("AtelierBaseToModel", (place, 210), (WIDTH, 90), title="The recipe's file", base=saved.out(0))
    for number, (title, loader) in enumerate((("base", first), ("recipe", merged), ("by blocks", live))):
        _drawing(page, title, loader, place + (number + 1) * COLUMN)
    page.group("1 Two models", (LEFT - 20, -10, 2 * COLUMN - 30, 2150), "#3f789e")
    page.group("2 Recipe and dry run", (LEFT - 20 + 2 * COLUMN, -10, COLUMN - 30, 2150), "#a1309b")
    page.group("3 Save, or merge by blocks", (LEFT - 20 + 3 * COLUMN, -10, COLUMN - 30, 2150), "#b06634")
    page.group("4 Look", (LEFT - 20 + 4 * COLUMN, -10, 4 * COLUMN - 30, 2150), "#8A8")
    page.note(NOTE, (40, 60), (NOTE_WIDTH, 900))
    return page


def _drawing(page: Page, title: str, loader: Placed, place: int) -> None:
    """A picture with the core nodes."""
    positive = page.add("CLIPTextEncode", (place, 60), (WIDTH, 110), text=PROMPT, clip=loader.out(1))
    negative = page.add("CLIPTextEncode", (place, 230), (WIDTH, 90), text="", clip=loader.out(1))
    empty = page.add("EmptyLatentImage", (place, 380), (WIDTH, 130), width=96, height=96, batch_size=4)
    sampled = page.add(
        "KSampler", (place, 570), (WIDTH, 300), model=loader.out(0), seed=7, steps=12, cfg=3.0, sampler_name="euler",
        scheduler="normal", positive=positive.out(), negative=negative.out(), latent_image=empty.out(), denoise=1.0,
    )  # fmt: skip
    decoded = page.add("VAEDecode", (place, 930), (WIDTH, 70), samples=sampled.out(), vae=loader.out(2))
    page.add("PreviewImage", (place, 1060), (WIDTH, 300), title=f"Picture: {title}", images=decoded.out())
