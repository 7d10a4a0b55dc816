"""FID against cost as masked resampling varies (paper, Fig. 5).

    python sweeps/resample_threshold.py
    python sweeps/resample_threshold.py --model runs/mine --data data/mine --trials 64
    python sweeps/resample_threshold.py --address auto --slots 8 --device cuda

Without arguments: prepares scikit-learn's digits, trains tokenizer, classifier and both
transformers (or takes those that are there), and searches the sampler's threshold, refinement
steps, feedback and guidance for low FID at low cost. Given again it goes on where it stopped.
"""

from srdd_platform.cli.sweep import main
from srdd_platform.report.specs import Frontier, Lines, Parallel
from srdd_platform.sweep.definition import (
    Categorical,
    Float,
    Int,
    Sweep,
    epsilon,
    plain,
    product,
)

SWEEP = Sweep(
    name="resample_threshold",
    space={
        "resample_threshold": Float(1e-4, 0.3, log=True),
        "refine_steps": Int(0, 4),  # 0 is plain SDD
        "feedback": Categorical(("updated", "kept", "none")),
        "cfg": Float(0.0, 3.0, step=0.25),
    },
    first=product(
        cfg=[0.5],
        feedback=["updated"],
        refine_steps=[1, 2, 4],
        resample_threshold=[1e-4, 1e-3, 1e-2, 1e-1],
    ),
    references=[*plain(cfg=[0, 0.5, 1, 2]), *epsilon(1e-3, 1e-2, cfg=0.5)],
    figures=[
        Frontier(),
        Lines(
            x="resample_threshold",
            series="refine_steps",
            fixed={"cfg": 0.5, "feedback": "updated"},
        ),
        Parallel(),
    ],
)

if __name__ == "__main__":
    main(SWEEP, __doc__)
