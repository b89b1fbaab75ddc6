"""Balancing a data set: repeats from a tree of folders with weights."""

from __future__ import annotations

from typing import Any

from ..dataset.balance import BalanceParams, apply_plan, plan_dataset, split_by_folder
from ..dataset.balance_text import FORMS, MULTIPLY, TOML, plan_text, write_multiply, written_note
from ..dataset.table import Dataset
from ._written import write_output
from .host import get_host
from .widgets import ROOT_CATEGORY, combo, number, params_from, socket, text, widgets

NOTHING, TEXT_FILE, IN_FOLDERS = "nothing", "the text, as a file", "multiply.txt into the folders"
WRITES = (NOTHING, TEXT_FILE, IN_FOLDERS)


class BalanceRepeats:
    """Plans repeats."""

    ID = "AtelierBalanceRepeats"
    TITLE = "Balance Repeats (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Data"
    DESCRIPTION = (
        "Sets how often each folder is seen, so that every branch of the tree of folders (characters~fanart~Name) "
        "weighs alike, or as its weight says. Warns of folders that would be learnt by heart; scales to a number of "
        "steps. Regularisation folders keep their repeats."
    )
    SEARCH_ALIASES = ["repeats", "class balance", "folder weights", "multiply.txt", "num_repeats", "steps"]
    RETURN_TYPES = ("ATELIER_DATASET", "STRING", "STRING")
    RETURN_NAMES = ("dataset", "report", "text")
    OUTPUT_TOOLTIPS = (
        "The data set with the planned repeats.",
        "Repeats, files and shares of every folder, steps, warnings.",
        "The plan in the chosen form.",
    )
    FUNCTION = "balance"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "dataset": socket(
                    "ATELIER_DATASET", "The data set whose repeats are planned; its files are left alone."
                ),
                **widgets(BalanceParams),
                "form": combo(
                    list(FORMS),
                    "What the output 'text' holds: names N_name for the folders, a data set configuration for kohya's "
                    "scripts, or the factors of multiply.txt.",
                ),
                "write": combo(
                    list(WRITES),
                    "nothing: no file is written. The text, as a file: below the output folder. multiply.txt into the "
                    "folders: one into each training folder of the data set.",
                ),
                "file_name": text("Name of the file below the output folder, where one is written."),
                "resolution_px": number(
                    "INT", 512, 64, 4096, 64, "Resolution named in the text for kohya's scripts, in px.", advanced=True
                ),
            }
        }

    def balance(
        self, dataset: Dataset, form: str, write: str, file_name: str, resolution_px: int = 512, **values: Any
    ) -> dict[str, Any]:
        """Plan, and write what was asked for."""
        params = params_from(BalanceParams, values)
        if params.split_folders:
            dataset = split_by_folder(dataset)
        plan = plan_dataset(dataset, params)
        balanced = apply_plan(dataset, plan)
        planned = plan_text(balanced, plan, form, resolution_px=resolution_px)
        said = plan.text()
        if write == TEXT_FILE:
            ending = ".toml" if form == TOML else ".csv" if form == MULTIPLY else ".txt"
            said += "\n\n" + written_note([write_output(file_name, planned, ending=ending)])
        elif write == IN_FOLDERS:
            said += "\n\n" + written_note(write_multiply(balanced, plan, get_host().roots().contains))
        return {"ui": {"text": [said]}, "result": (balanced, said, planned)}


NODES = (BalanceRepeats,)
