"""The data set doctor, and the profile of a data set."""

from __future__ import annotations

import json
from typing import Any

from ..dataset.doctor import DoctorParams, examine
from ..dataset.profile import ProfileParams, profile_of
from ..dataset.table import Dataset
from ._images import show_once, to_image
from ._index import index_if_usable
from .host import get_host
from .widgets import ROOT_CATEGORY, params_from, socket, widgets


class DatasetDoctor:
    """Looks for what is wrong with a data set."""

    ID = "AtelierDatasetDoctor"
    TITLE = "Data Set Doctor (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Data"
    DESCRIPTION = (
        "Looks a data set over before hours are spent on it: damaged files, EXIF, transparency, shared and empty "
        "captions, triggers, near-duplicates, too small pictures, heavy crops, batches of one. Every finding says what "
        "to do; nothing is changed."
    )
    SEARCH_ALIASES = ["check", "lint", "validate", "duplicates", "health", "quality", "resolution", "alpha"]
    RETURN_TYPES = ("ATELIER_DATASET", "STRING", "STRING", "IMAGE")
    RETURN_NAMES = ("dataset", "report", "report_json", "picture")
    OUTPUT_TOOLTIPS = (
        "The data set as it came in.",
        "The findings as a table, each with its severity, number of files, examples and what to do.",
        "The same as JSON.",
        "The same as a picture with the pictures concerned.",
    )
    FUNCTION = "examine"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        dataset = socket("ATELIER_DATASET", "The data set to look at; nothing about it is changed.")
        return {"required": {"dataset": dataset, **widgets(DoctorParams)}}

    def examine(self, dataset: Dataset, **values: Any) -> dict[str, Any]:
        """Look at the data set, and draw what was found."""
        from ..dataset.doctor_picture import draw_report

        progress = get_host().progress()
        params = params_from(DoctorParams, values)
        report = examine(dataset, params, index=index_if_usable(progress), progress=progress)
        picture = draw_report(report, dataset, progress=progress)
        said = report.text()
        data = json.dumps(report.to_json(), ensure_ascii=False, indent=1)
        ui = {"text": [said], "images": [show_once(picture, "atelier-doctor")]}
        return {"ui": ui, "result": (dataset, said, data, to_image([picture]))}


class DatasetProfile:
    """Describes a data set in figures."""

    ID = "AtelierDatasetProfile"
    TITLE = "Data Set Profile (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Data"
    DESCRIPTION = (
        "A data set in figures, to be kept beside a run: pictures, sizes, shares of single subjects, simple "
        "backgrounds and text, tags in total and by category, captions, steps."
    )
    SEARCH_ALIASES = ["statistics", "summary", "data card", "dataset info"]
    RETURN_TYPES = ("ATELIER_DATASET", "STRING", "STRING", "IMAGE")
    RETURN_NAMES = ("dataset", "report", "profile_json", "picture")
    OUTPUT_TOOLTIPS = (
        "The data set as it came in.",
        "The profile as a table.",
        "The same as JSON.",
        "The same as a picture.",
    )
    FUNCTION = "describe"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        dataset = socket("ATELIER_DATASET", "The data set to describe.")
        return {"required": {"dataset": dataset, **widgets(ProfileParams)}}

    def describe(self, dataset: Dataset, **values: Any) -> dict[str, Any]:
        """Count."""
        from ..core.table_picture import draw_table

        profile = profile_of(dataset, params_from(ProfileParams, values))
        picture = draw_table(profile.table(), title="Data set profile")
        said = profile.text()
        data = json.dumps(profile.to_json(), ensure_ascii=False, indent=1)
        ui = {"text": [said], "images": [show_once(picture, "atelier-profile")]}
        return {"ui": ui, "result": (dataset, said, data, to_image([picture]))}


NODES = (DatasetDoctor, DatasetProfile)
