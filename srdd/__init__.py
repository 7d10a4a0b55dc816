"""Scale-wise image generators: VAR, its Markovian form SDD, and SRDD's resampling."""

from srdd.rng import image_seed
from srdd.var.config import SamplerConfig
from srdd.var.pipeline import Pipeline, load_pipeline
from srdd.var.sampling import sample, sample_stream
from srdd.var.state import Preview, SampleResult

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
