"""Small node classes for tests of the graph runner."""

from __future__ import annotations

from typing import Any

import torch


class Number:
    RETURN_TYPES = ("INT", "FLOAT")
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "value": ("INT", {"default": 1, "min": 0, "max": 100}),
                "factor": ("FLOAT", {"default": 0.5, "min": 0.0, "max": 2.0}),
            },
            "optional": {"seed": ("INT", {"default": 0, "min": 0, "max": 2**63})},
        }

    def make(self, value: int, factor: float, seed: int = 0) -> tuple[int, float]:
        return value, value * factor


class Word:
    RETURN_TYPES = ("STRING",)
    FUNCTION = "say"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "text": ("STRING", {"multiline": True}),
                "style": (["plain", "loud", "quiet"],),
                "twice": ("BOOLEAN", {"default": False}),
            }
        }

    def say(self, text: str, style: str, twice: bool) -> tuple[str]:
        shown = text.upper() if style == "loud" else text
        return (shown * (2 if twice else 1),)


class Join:
    RETURN_TYPES = ("STRING",)
    FUNCTION = "join"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"word": ("STRING", {"forceInput": True})},
            "optional": {"number": ("INT,FLOAT", {"forceInput": True}), "model": ("MODEL",)},
        }

    def join(self, word: str, number: Any = None, model: Any = None) -> tuple[str]:
        return (f"{word}:{number}",)


class Words:
    RETURN_TYPES = ("STRING",)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "split"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"text": ("STRING", {})}}

    def split(self, text: str) -> tuple[list[str]]:
        return (text.split(),)


class Collect:
    RETURN_TYPES = ("STRING",)
    INPUT_IS_LIST = True
    OUTPUT_NODE = True
    FUNCTION = "collect"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"word": ("STRING", {"forceInput": True})}}

    def collect(self, word: list[str]) -> dict[str, Any]:
        return {"ui": {"text": ["+".join(word)]}, "result": ("+".join(word),)}


class Show:
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "show"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"value": ("*", {"forceInput": True})},
            "hidden": {"prompt": "PROMPT", "unique_id": "UNIQUE_ID", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def show(self, value: Any, prompt: Any, unique_id: str, extra_pnginfo: Any) -> dict[str, Any]:
        assert prompt[unique_id]["class_type"] == "Show"
        assert torch.is_inference_mode_enabled()
        return {"ui": {"text": [str(value)], "info": [extra_pnginfo]}}


class Picky:
    RETURN_TYPES = ("STRING",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"low": ("INT", {"min": 0, "max": 9}), "high": ("INT", {"min": 0, "max": 9})}}

    @classmethod
    def VALIDATE_INPUTS(cls, low: int, high: int) -> bool | str:
        return True if low is None or high is None or low < high else f"low is {low}; it must be below high ({high})."

    def run(self, low: int, high: int) -> tuple[str]:
        return (str(low + high),)


class Fail:
    RETURN_TYPES = ("STRING",)
    FUNCTION = "run"
    error: BaseException = RuntimeError("broken on purpose")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def run(self) -> tuple[str]:
        raise self.error


class Unfold:
    RETURN_TYPES = ("STRING",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def run(self) -> dict[str, Any]:
        return {"result": ("x",), "expand": {}}


CLASSES: dict[str, type] = {
    node.__name__: node for node in (Number, Word, Join, Words, Collect, Show, Picky, Fail, Unfold)
}
