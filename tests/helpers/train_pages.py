"""The shipped workflows that train on a person's own pictures, and the one that compares two networks."""

from typing import Any

from atelier_tests.helpers.workflow_pages import PICO, SAMPLING, Column, Page, Placed

WIDTH = 360
COLUMN = 430
NOTE_WIDTH = 560
LEFT = NOTE_WIDTH + 100
"""Where the first node lies; the note is left of it, where the page opens."""

OWN_SD15 = "choose-your-sd15-model.safetensors"
OWN_SDXL = "choose-your-sdxl-model.safetensors"
"""What stands where a person chooses a model: no file of this name is there, so the error says where it belongs."""
OWN_FOLDER = "choose-your-folder"

PROBES = (
    "{trigger}, solo, face, close-up\n{trigger}, solo, portrait, from side\n{trigger}, solo, full body, standing\n"
    "{trigger}, solo, from behind\n{trigger}, solo, from above, sitting\nsolo, portrait, looking at viewer"
)
"""Record 001's probes: close, portrait and full body; from the side, from behind, from above; the last one without."""
STYLE_PROBES = (
    "solo, portrait, looking at viewer\nsolo, full body, standing, city street\nno people, forest, river, scenery\n"
    "no people, room, table, window\nsolo, umbrella, rain\ncat, sitting, grass"
)

CHARACTER_NOTE = """## Train a character on SD 1.x
1. Choose your checkpoint in **Open Base Model** (its file lies in `models/checkpoints`).
2. Name the folder of your pictures in **Open Data Set**: below ComfyUI's `input`, with a `.txt` caption beside each
   picture that begins with the trigger, as *Prepare a character* makes it. `keep_tokens` 1 keeps the trigger in front
   while the other tags are shuffled.
3. Put the trigger into **Train LoRA** and into the prompts on the right, and press **Run**.

The numbers are those of a public log of many such trainings:

| | |
|---|---|
| rank, alpha | 16, a quarter of it: 4 (16 for very few pictures) |
| blocks | `IN04-07, OUT03-06` and the text encoder: less memory, smaller file; all blocks if the likeness suffers |
| optimizer | D-Adaptation Lion, rate 1, betas 0.9 and 0.999, no decay: clothes come out better, and sooner |
| steps | 4,000 to 6,000; a checkpoint every 1,000, and the grid shows which one to keep |
| size | 512 px, sides of 320 to 1536; fp16, gradient checkpointing, seed 42 |
| colours | vary a little from time to time (**Augment**); switch that off where a colour is part of the character |

No regularisation pictures, unless other things must stay as they are: then give **Open Data Set** a `reg_folder`. For
objects take rank 64, alpha 1 and 9,000 steps; for backgrounds at most rank 32 and 5,000 steps."""

CHARACTER_XL_NOTE = """## Train a character on SDXL
1. Choose your checkpoint in **Open Base Model** (its file lies in `models/checkpoints`).
2. Name the folder of your pictures in **Open Data Set**: below ComfyUI's `input`, with a `.txt` caption beside each
   picture that begins with the trigger. Captions stay whole here: nothing is pruned, nothing is shuffled.
3. Put the trigger into **Train LoRA** and into the prompts on the right, and press **Run**.

The numbers are those of a public log of many such trainings:

| | |
|---|---|
| rank, alpha | 8, a quarter of it: 2 |
| trained | the UNet alone: pictures and captions are encoded once and the text encoders leave the memory |
| optimizer | AdamW at 1e-4 |
| numbers | mixed precision (bf16; fp16 on older cards); `trained_dtype` stays fp32: fp16 learns nothing |
| steps | 4,000, a checkpoint every 1,000, and the grid shows which one to keep |
| size | 1024 px, sides of 512 to 2048; gradient checkpointing |

If the memory is not enough, switch `fp8_base` on. If there is some left, set `recomputed` to *inner levels*: faster."""

STYLE_NOTE = """## Train a style
1. Choose your checkpoint in **Open Base Model** (its file lies in `models/checkpoints`).
2. Name the folder of your pictures in **Open Data Set**: below ComfyUI's `input`, with a `.txt` caption beside each
   picture that says everything but the style, as *Prepare a style* makes it. `keep_tokens` is 0: there is no trigger,
   and the style is there whenever the LoRA is on. (With a trigger: `keep_tokens` 1.)
3. Press **Run**.

The numbers are those of a public log of many such trainings:

| | |
|---|---|
| rank, alpha | 64 and 32, with the convolutions alike (rank 16 is enough afterwards: a resized file draws the same) |
| optimizer | AdamW at 1e-4, cosine with 4 restarts, 300 steps of warm-up |
| steps | 9,000, a checkpoint every 1,500, and the grid shows which one to keep |
| size | 512 px, sides of 320 to 1536; fp16, gradient checkpointing, seed 42 |
| colours | hue and brightness vary a little (**Augment**); take it out where the style is in its colours |

The prompts on the right are of things that your pictures need not show: a style is learned when it reaches them."""

COMPARE_NOTE = """## Compare two networks
A LoRA and a LoHa are trained from the same drawings with the same settings, and stand side by side in one grid: the
model without either, the one, the other. Everything is built in: press **Run** and wait about six minutes on a laptop's
processor.

1. **Pico Data Set** draws 28 pictures of a character, and 112 without it. Both trainings share all that is prepared.
2. **LoRA** of rank 16 on the left, **LoHa** of rank 8 on the right: the settings differ in nothing else.
3. **Compare**: one column each, one row per prompt, the same noise in a row.
4. **Count**: a tagger says for 32 more prompts how often the trigger works, and whether everything else still does.

To compare other networks put another network's node in the place of one. To compare something else, such as two ranks,
learning rates or block choices, change it on one side alone. For your own pictures take the base, the data set and the
sizes of *Train a character*."""


def train_character_sd15() -> Page:
    """A character on SD1.x with record 004's numbers."""
    page = Page()
    base, data, model = _sources(page, OWN_SD15, shuffle_captions=True, keep_tokens=1)
    recipe = page.column(LEFT + COLUMN, WIDTH)
    network = recipe.add("AtelierNetworkLora", rank=16, alpha=4.0)
    blocks = recipe.add("AtelierBlocks", at_least=110, blocks="IN04-07,OUT03-06,TE")
    optimizer = recipe.add(
        "AtelierOptimizerDadaptLion", lr_unet=1.0, lr_text_encoder=1.0, beta1=0.9, beta2=0.999, weight_decay=0.0,
        d0=1e-6,
    )  # fmt: skip
    augment = recipe.add("AtelierTrainAugment", title="Augment", variants=4, random_crop=False, colour_jitter=True)
    train = _training(
        page, base, data, network=network.out(), optimizer=optimizer.out(), blocks=blocks.out(), augment=augment.out(),
        run_name="my-character", trigger="mychar", steps=5000, batch_size=2, resolution_px=512, seed=42,
        precision="fp16", save_every_steps=1000, gradient_checkpointing=True, bucket_min_px=320, bucket_max_px=1536,
    )  # fmt: skip
    grid = _comparison(page, model, train, PROBES.format(trigger="mychar"), size_px=512)
    _frames(page, recipe, grid, CHARACTER_NOTE)
    return page


def train_character_sdxl() -> Page:
    """A character on SDXL with record 004's numbers."""
    page = Page()
    base, data, model = _sources(page, OWN_SDXL, shuffle_captions=False, keep_tokens=1)
    recipe = page.column(LEFT + COLUMN, WIDTH)
    network = recipe.add("AtelierNetworkLora", rank=8, alpha=2.0)
    optimizer = recipe.add("AtelierOptimizerAdamw", lr_unet=1e-4)
    train = _training(
        page, base, data, network=network.out(), optimizer=optimizer.out(), run_name="my-character-xl",
        trigger="mychar", steps=4000, batch_size=1, resolution_px=1024, seed=42, train_text_encoder=False,
        precision="bf16", save_every_steps=1000, gradient_checkpointing=True, bucket_min_px=512, bucket_max_px=2048,
    )  # fmt: skip
    grid = _comparison(page, model, train, PROBES.format(trigger="mychar"), size_px=1024)
    _frames(page, recipe, grid, CHARACTER_XL_NOTE)
    return page


def train_style() -> Page:
    """A style on SD1.x with record 004's numbers."""
    page = Page()
    base, data, model = _sources(page, OWN_SD15, shuffle_captions=True, keep_tokens=0)
    recipe = page.column(LEFT + COLUMN, WIDTH)
    network = recipe.add("AtelierNetworkLora", rank=64, alpha=32.0, conv_rank=64, conv_alpha=32.0)
    optimizer = recipe.add(
        "AtelierOptimizerAdamw", lr_unet=1e-4, lr_text_encoder=5e-5, schedule="cosine_with_restarts", cycles=4,
        warmup_steps=300,
    )  # fmt: skip
    augment = recipe.add(
        "AtelierTrainAugment", title="Augment", variants=3, random_crop=False, colour_jitter=True,
        brightness_min=0.95, brightness_max=1.05, contrast_min=1.0, contrast_max=1.0, saturation_min=1.0,
        saturation_max=1.0, hue_min_degrees=-16.0, hue_max_degrees=16.0,
    )  # fmt: skip
    train = _training(
        page, base, data, network=network.out(), optimizer=optimizer.out(), augment=augment.out(),
        run_name="my-style", steps=9000,
        batch_size=2, resolution_px=512, seed=42, precision="fp16", save_every_steps=1500,
        gradient_checkpointing=True, bucket_min_px=320, bucket_max_px=1536,
    )  # fmt: skip
    grid = _comparison(page, model, train, STYLE_PROBES, size_px=512)
    _frames(page, recipe, grid, STYLE_NOTE)
    return page


def compare_networks() -> Page:
    """A LoRA and a LoHa from the same drawings, side by side in one grid."""
    page = Page()
    sources = page.column(LEFT, WIDTH)
    base = sources.add("AtelierOpenBase", base_name=PICO, dtype="fp32")
    drawn = sources.add("AtelierPicoDataset", concept="kest", num_images=28, num_reg_images=112, concept_repeats=10)
    data = sources.add("AtelierOpenDataset", folder=drawn.out(0), reg_folder=drawn.out(1), keep_tokens=1)
    model = sources.add("AtelierBaseToModel", base=base.out())
    optimizer = sources.add(
        "AtelierOptimizerAdamw", title="One optimizer for both", lr_unet=4e-3, lr_text_encoder=3e-3, schedule="cosine",
        warmup_steps=20, beta2=0.99, weight_decay=0.01,
    )  # fmt: skip
    settings: dict[str, Any] = {
        "base": base.out(), "dataset": data.out(), "optimizer": optimizer.out(), "trigger": "lumo kest", "steps": 300,
        "batch_size": 8, "resolution_px": 96, "seed": 0, "bucket_step_px": 8, "bucket_min_px": 32,
        "bucket_max_px": 128,
    }  # fmt: skip
    one, other = page.column(LEFT + COLUMN, WIDTH), page.column(LEFT + 2 * COLUMN, WIDTH)
    first = one.add("AtelierNetworkLora", at_least=420, rank=16, alpha=16.0)
    second = other.add("AtelierNetworkLoha", at_least=420, rank=8, alpha=8.0)
    lora = one.add("AtelierTrainLora", title="Train the LoRA", network=first.out(), run_name="as-lora", **settings)
    loha = other.add("AtelierTrainLora", title="Train the LoHa", network=second.out(), run_name="as-loha", **settings)

    wires = {"model": model.out(0), "clip": model.out(1), "vae": model.out(2)}
    drawing = {"sampler": "euler", "scheduler": "normal", "width_px": 96, "height_px": 96, "seed": 1, **SAMPLING}
    eye = page.column(LEFT + 3 * COLUMN, WIDTH)
    columns = eye.add("AtelierAxisLora", title="Columns: none, LoRA, LoHa", lora_1=lora.out(1), lora_2=loha.out(1))
    words = eye.add("AtelierPicoPrompts", title="Trigger prompts", concept="kest", kind="trigger", num_prompts=6)
    rows = eye.add("AtelierAxisPrompt", title="Rows: trigger prompts", prompts=words.out(0))
    eye.add(
        "AtelierXYGrid", at_least=760, title="Side by side", **wires, **drawing, x=columns.out(), y=rows.out(),
        widgets={"title": "without, LoRA of rank 16, LoHa of rank 8"},
    )  # fmt: skip
    counts = page.column(LEFT + 4 * COLUMN, WIDTH)
    probes = counts.add(
        "AtelierPicoPrompts", title="Probe prompts", concept="kest", kind="mixed", num_prompts=32, seed=1
    )
    probe_rows = counts.add("AtelierAxisPrompt", title="Rows: probe prompts", prompts=probes.out(0), seed_step=1)
    grid = counts.add(
        "AtelierXYGrid", at_least=500, title="Probe", **wires, **drawing, x=columns.out(), y=probe_rows.out()
    )
    counts.add(
        "AtelierScoreGrid", at_least=400, grid=grid.out(1), tagger_name=PICO, trigger=probes.out(1),
        concept_tag=probes.out(2),
    )  # fmt: skip
    page.group_over("1 Model, data, optimizer", [sources], "#3f789e")
    page.group_over("2 The two networks", [one, other], "#a1309b")
    page.group_over("3 Side by side", [eye], "#8A8")
    page.group_over("4 Counted", [counts], "#b06634")
    page.note(COMPARE_NOTE, (40, 60), (NOTE_WIDTH, 420))
    return page


def _sources(page: Page, base_name: str, *, shuffle_captions: bool, keep_tokens: int) -> tuple[Placed, Placed, Placed]:
    """Base, data set, and the base as a model to draw with."""
    column = page.column(LEFT, WIDTH)
    base = column.add("AtelierOpenBase", title="Choose your model", base_name=base_name, dtype="fp16")
    data = column.add(
        "AtelierOpenDataset", title="Choose your pictures", folder=OWN_FOLDER, shuffle_captions=shuffle_captions,
        keep_tokens=keep_tokens,
    )  # fmt: skip
    model = column.add("AtelierBaseToModel", base=base.out())
    page.group_over("1 Your model and pictures", [column], "#3f789e")
    return base, data, model


def _training(page: Page, base: Placed, data: Placed, **settings: Any) -> Placed:
    column = page.column(LEFT + 2 * COLUMN, WIDTH)
    train = column.add("AtelierTrainLora", at_least=1240, base=base.out(), dataset=data.out(), **settings)
    column.add("AtelierPlotLoss", at_least=330, run=train.out(0))
    page.group_over("3 Train", [column], "#a1309b")
    return train


def _comparison(page: Page, model: Placed, train: Placed, prompts: str, *, size_px: int) -> list[Column]:
    """The checkpoints against the model without the LoRA, and the run's report."""
    axes, sheet = page.column(LEFT + 3 * COLUMN, WIDTH), page.column(LEFT + 4 * COLUMN, 520)
    columns = axes.add(
        "AtelierAxisRunCheckpoints", at_least=160, title="Columns: without, every checkpoint", run=train.out(0)
    )
    rows = axes.add("AtelierAxisPrompt", at_least=260, title="Rows: your prompts", prompts=prompts)
    axes.add("AtelierRunReport", at_least=560, run=train.out(0))
    sheet.add(
        "AtelierXYGrid", at_least=1100, title="Compare", model=model.out(0), clip=model.out(1), vae=model.out(2),
        x=columns.out(), y=rows.out(), steps=20, cfg=7.0, sampler="euler", scheduler="normal", width_px=size_px,
        height_px=size_px, seed=1, negative="lowres, blurry",
    )  # fmt: skip
    return [axes, sheet]


def _frames(page: Page, recipe: Column, comparison: list[Column], note: str) -> None:
    page.group_over("2 What is trained, and how", [recipe], "#b06634")
    page.group_over("4 Compare the checkpoints", comparison, "#8A8")
    page.note(note, (40, 60), (NOTE_WIDTH, 600))


def as_tested(form: dict[str, Any], *, base_name: str, folder: str) -> dict[str, Any]:
    """An API form with a tiny model and a folder of drawings in place of a person's own, and few steps.

    Args:
        form: of a shipped workflow; left alone.
        base_name: of the base, where the form asks for one's own.
        folder: of the pictures, likewise.
    """
    small: dict[str, dict[str, Any]] = {
        "AtelierTrainAugment": {"variants": 2},
        "AtelierTrainLora": {
            "steps": 4, "batch_size": 2, "resolution_px": 64, "bucket_step_px": 8, "bucket_min_px": 32,
            "bucket_max_px": 128, "precision": "fp32", "save_every_steps": 2,
        },
        "AtelierXYGrid": {"steps": 2, "width_px": 64, "height_px": 64},
        "AtelierOptimizerAdamw": {"warmup_steps": 1},
        "AtelierNetworkLora": {"rank": 4},
        "AtelierPicoDataset": {"num_images": 4, "num_reg_images": 4},
        "AtelierPicoPrompts": {"num_prompts": 2},
    }  # fmt: skip
    changed = {}
    for node_id, node in form.items():
        given = {name: value for name, value in small.get(node["class_type"], {}).items() if name in node["inputs"]}
        inputs = {**node["inputs"], **given}
        if inputs.get("base_name") in (OWN_SD15, OWN_SDXL):
            inputs.update(base_name=base_name, dtype="fp32")
        if inputs.get("folder") == OWN_FOLDER:
            inputs["folder"] = folder
        if node["class_type"] == "AtelierNetworkLora" and inputs.get("conv_rank"):
            inputs["conv_rank"] = 4
        changed[node_id] = {**node, "inputs": inputs}
    return changed
