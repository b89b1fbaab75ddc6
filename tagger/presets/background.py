"""A background: who is in it stays tagged, or persons and animals leak into the place."""

from ._spec import ABSTRACT, ConceptPreset, Removal

PRESET = ConceptPreset(
    name="background",
    title="Background",
    summary="Puts the place first; persons and animals keep their tags, so that they do not leak into the place",
    source="Notes of a LoRA trainer: person tags must stay, animals are named (dog, cow)",
    first="the name of the place",
    removals=(Removal(reason="says nothing that can be seen", entries=ABSTRACT),),
    keep="class:people, category:species, category:character, animal, dog, cat, cow, horse, bird, fish, sheep, pig, "
    "rabbit, fox, bear, deer, chicken, duck",
    advice=("Name every animal that a picture shows (dog, cow); an untagged one comes back with the place.",),
)
