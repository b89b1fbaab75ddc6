"""Comparing: axes, grids of cells, sheets, metrics and scores; drawing and judging come in as callables."""
