"""A character: traits of the body go into the trigger, clothes, pose, background and the count of people stay."""

from ._spec import ABSTRACT, ConceptPreset, Removal

PRESET = ConceptPreset(
    name="character",
    title="Character",
    summary="Takes out hair, eyes, horns, halo, ears, wings and what says nothing; clothes, pose and background stay",
    source="A LoRA trainer's table of what to prune per concept; outfits appear only when they are prompted",
    first="the trigger",
    trait_mode="character_core",
    removals=(Removal(reason="says nothing that can be seen", entries=ABSTRACT),),
    advice=(
        "Look at the traits that are still in the captions: blush and the like belong to the character only where it "
        "always has them.",
        "Take out tags that the tagger saw wrongly; one wrong trait spoils the result.",
    ),
)
