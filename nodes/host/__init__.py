"""The program the nodes run in: ComfyUI when it is there, the local host otherwise."""

from __future__ import annotations

import sys

from .protocol import OWN_VAE, PICO_NAME, PICO_XL_NAME, SETTINGS_FILE, Host

__all__ = ["OWN_VAE", "PICO_NAME", "PICO_XL_NAME", "SETTINGS_FILE", "Host", "get_host", "set_host"]

_chosen: Host | None = None


def inside_comfyui() -> bool:
    """True when ComfyUI has loaded its own modules in this process."""
    return "folder_paths" in sys.modules and "comfy" in sys.modules


def get_host() -> Host:
    """The host of this process, made on first use.

    Returns:
        The host given to :func:`set_host`, else ComfyUI's when its modules are loaded, else the local one.
    """
    global _chosen
    if _chosen is None:
        if inside_comfyui():
            from .comfy import ComfyHost

            _chosen = ComfyHost()
        else:
            from .local import LocalHost

            _chosen = LocalHost(make_folders=False)  # asking for a node's inputs must not litter
    return _chosen


def set_host(host: Host | None) -> None:
    """Use this host from now on; None goes back to choosing by the modules that are loaded."""
    global _chosen
    _chosen = host
