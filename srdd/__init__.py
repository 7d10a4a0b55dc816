"""Scale-wise image generators: VAR, its Markovian form SDD, and SRDD's resampling.

Public names are imported when they are first used: ``import srdd`` alone does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srdd.generator import Preview, SampleResult, sample, sample_stream
    from srdd.load import load_pipeline
    from srdd.rng import image_seed
    from srdd.var.config import SamplerConfig
    from srdd.var.pipeline import Pipeline

__all__ = [
    "Pipeline",
    "Preview",
    "SampleResult",
    "SamplerConfig",
    "image_seed",
    "load_pipeline",
    "sample",
    "sample_stream",
]

_MODULES = {
    "Pipeline": "srdd.var.pipeline",
    "Preview": "srdd.generator",
    "SampleResult": "srdd.generator",
    "SamplerConfig": "srdd.var.config",
    "image_seed": "srdd.rng",
    "load_pipeline": "srdd.load",
    "sample": "srdd.generator",
    "sample_stream": "srdd.generator",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
