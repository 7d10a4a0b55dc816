"""A pipeline behind HTTP: a step loop (``engine``), its API (``api``), Ray Serve (``app``)."""
