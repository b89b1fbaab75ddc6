"""Tests; they mirror the tree. Shared helpers are imported as ``atelier_tests.helpers``."""
