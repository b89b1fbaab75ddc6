"""An object: its other names go, so that they do not share it with the trigger."""

from ._spec import ABSTRACT, NAMES, ConceptPreset, Removal

PRESET = ConceptPreset(
    name="object",
    title="Object",
    summary="Takes out other names of the object, names of characters and what says nothing; the rest stays",
    source="A LoRA trainer's published table of what to prune per concept: gun, weapon, assault rifle overlap",
    first="the name of the object",
    removals=(
        Removal(reason="says nothing that can be seen", entries=ABSTRACT),
        Removal(reason="name of a character or work", entries=NAMES),
    ),
    families=(
        "gun, weapon, firearm, rifle, assault rifle, sniper rifle, shotgun, handgun, pistol, revolver, machine gun, "
        "submachine gun, bolt action, bullpup, holding gun, holding weapon, holding rifle",
        "sword, weapon, katana, blade, rapier, greatsword, longsword, dagger, knife, sheathed, sheath, scabbard, "
        "holding sword, holding weapon, holding knife",
        "polearm, weapon, spear, lance, halberd, naginata, trident, scythe, holding polearm, holding weapon",
        "bow, weapon, bow (weapon), arrow, arrow (projectile), crossbow, quiver, holding bow (weapon)",
        "axe, weapon, hammer, mace, club (weapon), war hammer, holding axe, holding weapon",
        "car, vehicle, motor vehicle, ground vehicle, truck, van, sports car, vehicle focus",
        "motorcycle, vehicle, motor vehicle, ground vehicle, scooter, bicycle, vehicle focus",
        "train, vehicle, ground vehicle, locomotive, railway car, vehicle focus",
        "tank, vehicle, military vehicle, motor vehicle, ground vehicle, armored vehicle, vehicle focus",
        "aircraft, airplane, jet, fighter jet, helicopter, military vehicle, vehicle focus",
        "ship, boat, watercraft, warship, sailboat, submarine, vehicle focus",
        "mecha, robot, mobile suit, armor, power armor, no humans, science fiction",
        "instrument, guitar, electric guitar, bass guitar, violin, piano, keyboard (instrument), drum, flute, "
        "holding instrument, playing instrument",
        "cup, mug, teacup, glass, drinking glass, wine glass, bottle, holding cup",
        "bag, backpack, handbag, school bag, shoulder bag, randoseru, suitcase, holding bag",
        "phone, cellphone, smartphone, holding phone",
        "umbrella, parasol, oil-paper umbrella, holding umbrella",
        "chair, armchair, office chair, throne, stool, couch, bench",
        "hat, headwear, cap, beret, top hat, witch hat, straw hat",
        "glasses, eyewear, sunglasses, goggles, semi-rimless eyewear, round eyewear",
        "mask, gas mask, mouth mask, fox mask, half mask, mask on head",
        "plush, stuffed toy, stuffed animal, teddy bear, doll, toy",
    ),
    advice=("See whether other tags name the object too, and put them into 'remove'.",),
)
