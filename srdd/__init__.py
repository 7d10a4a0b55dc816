"""Scale-wise image generators: VAR, its Markovian form SDD, and SRDD's resampling."""

from srdd.config import SamplerConfig
from srdd.pipeline import Pipeline, load_pipeline
from srdd.rng import image_seed
from srdd.sample_state import Preview, SampleResult
from srdd.sampling import sample, sample_stream

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
