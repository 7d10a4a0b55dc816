"""A pipeline behind HTTP: a step loop (``engine``), its API (``api``), Ray Serve (``app``)."""

from srdd_platform.serving.app import run

__all__ = ["run"]
