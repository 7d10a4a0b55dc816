"""FID against cost as masked resampling varies (paper, Fig. 5).

    python sweeps/resample_threshold.py
    python sweeps/resample_threshold.py --model runs/mine --data data/mine --trials 64
    python sweeps/resample_threshold.py --address auto --slots 8 --device cuda

Without arguments: prepares scikit-learn's digits, trains tokenizer, classifier and both
transformers (or takes those that are there), and searches the sampler's threshold, refinement
steps, feedback and guidance for low FID at low cost. Given again it goes on where it stopped.
"""

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from srdd_platform.cli.sweep import sweep_main
from srdd_platform.sweep.space import Grid

SPACE = {
    "resample_threshold": FloatDistribution(1e-4, 0.3, log=True),
    "refine_steps": IntDistribution(0, 4),  # 0 is plain SDD
    "feedback": CategoricalDistribution(("updated", "kept", "none")),
    "cfg": FloatDistribution(0.0, 3.0, step=0.25),
}
GRID = Grid(
    cfg=0.5, feedback="updated", thresholds=(1e-4, 1e-3, 1e-2, 1e-1), refine_steps=(1, 2, 4)
)

if __name__ == "__main__":
    sweep_main("resample_threshold", SPACE, GRID, __doc__)
