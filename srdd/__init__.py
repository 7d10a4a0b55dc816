"""Scale-wise image generators: VAR, its Markovian form SDD, and SRDD's resampling."""

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
