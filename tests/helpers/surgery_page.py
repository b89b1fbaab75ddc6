"""The shipped workflow of the LoRA tools: a trained LoRA is looked into, cut, merged, taken out again, compared."""

from atelier_tests.helpers.workflow_pages import PICO, Column, Page

NOTE = """## LoRA surgery
A small LoRA is trained and then taken apart with every tool. Everything is built in: press **Run** and wait about two
minutes on a laptop's processor.

1. **Train** a character. In your own graph **Open LoRA** stands here.
2. **Inspect LoRA** tells algorithm, ranks, blocks and trigger words, and how many ranks are really used.
3. **Resize LoRA** cuts it to rank 4 and says what that costs, before anything is saved (*dry run*).
4. **Merge LoRAs into Checkpoint** makes it a part of the model and saves that as a new file.
5. **Rank Spectrum** shows how many ranks the difference of the two models fills, **Extract LoRA** takes a LoRA out of
   it again, and **Inspect LoRA** compares it with the one that went in.
6. **Merge LoRAs** puts half of the first and half of the extracted one together: the sum of the true changes.
7. **Convert LoRA** and **Edit LoRA Metadata** write it under other names, with a title and a thumbnail.
8. **XY Grid** draws all of them side by side.

Every tool has *dry run* on at first: the result is there for the nodes behind, and kept when you switch it off. Inputs
are never changed."""

GRID = {"sampler": "euler", "scheduler": "normal", "width_px": 96, "height_px": 96, "seed": 1, "steps": 12, "cfg": 3.0}
WIDTH, STEP, TOP = 340, 400, 60


def lora_surgery() -> Page:
    """From a trained LoRA through every tool to a grid."""
    page = Page()
    columns = [Column(page, 620 + STEP * number, WIDTH, TOP) for number in range(8)]
    data, training, first, model_files, again, merging, comparing, naming = columns

    base = data.add("AtelierOpenBase", base_name=PICO, dtype="fp32")
    drawn = data.add("AtelierPicoDataset", concept="kest", num_images=28, num_reg_images=56, seed=0, concept_repeats=10)
    opened = data.add("AtelierOpenDataset", folder=drawn.out(0), reg_folder=drawn.out(1))
    network = data.add("AtelierNetworkLora", rank=16, alpha=16.0)
    optimizer = data.add(
        "AtelierOptimizerAdamw", lr_unet=4e-3, lr_text_encoder=3e-3, schedule="cosine", warmup_steps=10, beta2=0.99,
        weight_decay=0.01,
    )  # fmt: skip
    train = training.add(
        "AtelierTrainLora", base=base.out(), dataset=opened.out(), network=network.out(), optimizer=optimizer.out(),
        run_name="surgery", steps=160, batch_size=8, resolution_px=96, seed=0, bucket_step_px=8, bucket_min_px=32,
        bucket_max_px=128,
    )  # fmt: skip

    first.add("AtelierInspectLora", at_least=700, title="Inspect the trained LoRA", lora=train.out(1))
    resized = first.add("AtelierResizeLora", at_least=560, title="Resize to rank 4", lora=train.out(1), rank=4)

    baked = model_files.add(
        "AtelierMergeLorasIntoCheckpoint", at_least=560, title="Into a checkpoint, saved", base=base.out(),
        lora_1=train.out(1), file_name="atelier/surgery", dry_run=False, dtype="fp32",
    )  # fmt: skip
    model_files.add("AtelierCheckpointDifference", at_least=700, base=base.out(), tuned=baked.out(0))

    extracted = again.add(
        "AtelierExtractLora", at_least=700, title="Extract it again", base=base.out(), tuned=baked.out(0), rank=16
    )
    again.add(
        "AtelierInspectLora", at_least=700, title="Compare with the one that went in", lora=train.out(1),
        other=extracted.out(0),
    )  # fmt: skip

    merged = merging.add(
        "AtelierMergeLoras", at_least=840, title="Half and half", lora_1=train.out(1), lora_2=extracted.out(0),
        method="svd", rank=16, ratios="0.5, 0.5",
    )  # fmt: skip

    axis = comparing.add(
        "AtelierAxisLora", title="Columns: base, trained, resized, both", lora_1=train.out(1), lora_2=resized.out(0),
        lora_3=merged.out(0),
    )  # fmt: skip
    words = comparing.add("AtelierPicoPrompts", concept="kest", kind="trigger", num_prompts=3)
    rows = comparing.add("AtelierAxisPrompt", title="Rows: trigger prompts", prompts=words.out(0))
    model = comparing.add("AtelierBaseToModel", base=base.out())
    grid = comparing.add(
        "AtelierXYGrid", at_least=660, model=model.out(0), clip=model.out(1), vae=model.out(2), x=axis.out(),
        y=rows.out(), **GRID,
    )  # fmt: skip

    converted = naming.add(
        "AtelierConvertLora", at_least=480, title="ComfyUI's names", lora=resized.out(0), naming="comfyui"
    )
    naming.add(
        "AtelierEditLoraMetadata", at_least=640, title="Title, trigger, thumbnail", lora=converted.out(0),
        thumbnail=grid.out(0), widgets={"title": "Lumo kest, rank 4"}, trigger_phrase="lumo kest",
    )  # fmt: skip

    page.group_over("1 Train", [data, training], "#3f789e")
    page.group_over("2 Inspect, 3 Resize", [first], "#a1309b")
    page.group_over("4 Into a model", [model_files], "#b06634")
    page.group_over("5 Out of it again", [again], "#3f789e")
    page.group_over("6 Merge", [merging], "#a1309b")
    page.group_over("8 Compare", [comparing], "#8A8")
    page.group_over("7 Names", [naming], "#b06634")
    page.note(NOTE, (40, TOP), (520, 1000))
    return page
