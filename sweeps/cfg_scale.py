"""FID and IS against the guidance weight (paper, Figs. 8 and 10).

    python sweeps/cfg_scale.py
    python sweeps/cfg_scale.py --preset cifar10 --trials 60 --device cuda

Four samplers at the same guidance weights: VAR, SDD, and SDD whose codes are drawn again once,
all of them (SR) or the unlikely ones (MR). The preset's models are trained, one a mask, or taken
if they are there. Trials beyond the figures' are chosen by the search.
"""

from collections.abc import Sequence

from srdd_platform.cli.sweep import main
from srdd_platform.report.specs import Frontier, Lines, Parallel
from srdd_platform.sweep.definition import Categorical, Float, Int, Sweep, plain, product


def over(cfg: Sequence[float]) -> Sweep:
    """The sweep over some guidance weights."""
    first = [
        *product(refine_steps=[0], cfg=cfg, mask=["markov", "block_causal"]),
        *product(mask=["markov"], refine_steps=[1], cfg=cfg, resample=["simple", "masked"]),
    ]
    masks = {"refine_steps": 0}
    resampling = {"mask": "markov", "refine_steps": 1}
    return Sweep(
        name="cfg_scale",
        models={"mask": ["markov", "block_causal"]},
        space={
            "cfg": Float(min(cfg), max(cfg), step=0.25),
            "refine_steps": Int(0, 1),
            "resample": Categorical(("simple", "masked")),
        },
        first=first,
        trials=len(first),
        references=plain(cfg=[0]),
        figures=[
            Lines(x="cfg", series="mask", fixed=masks),
            Lines(x="cfg", series="mask", fixed=masks, metric="is"),
            Lines(x="cfg", series="resample", fixed=resampling),
            Lines(x="cfg", series="resample", fixed=resampling, metric="is"),
            Frontier(),
            Parallel(),
        ],
    )


SWEEP = over([0, 0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10])
DIGITS = over([0, 0.5, 1, 2, 3])

if __name__ == "__main__":
    main(SWEEP, __doc__, presets={"digits": DIGITS})
