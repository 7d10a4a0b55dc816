"""A trial of a sweep over models, in this process. No Ray."""

from pathlib import Path
from typing import Any

from srdd import SamplerConfig
from srdd.load import load_pipeline
from srdd_platform.evaluation.protocol import EvaluationConfig, weights_digest
from srdd_platform.evaluation.rows import read_rows
from srdd_platform.sweep.definition import Float
from srdd_platform.sweep.search import SamplerTrial, Search
from srdd_platform.sweep.space import SearchSpace


def test_models_of_equal_weights_have_a_row_each(
    tiny_pipelines: dict[str, Path], digits_shards: Path, classifier_dir: Path, tmp_path: Path
) -> None:
    assert len({weights_digest(path) for path in tiny_pipelines.values()}) == 1
    search = Search(
        directory=str(tmp_path), load=load_pipeline, objectives=("fid", "nfe"), first=(),
        models={(mask,): str(path) for mask, path in tiny_pipelines.items()}, trials=2, slots=1,
        space=SearchSpace(
            settings={"cfg": Float(0, 1)}, base=SamplerConfig(),
            models={"mask": tuple(tiny_pipelines)},
        ),
        evaluation=EvaluationConfig(
            data=str(digits_shards), extractor="classifier", weights=str(classifier_dir), num=50
        ),
    )  # fmt: skip
    trial: Any = object.__new__(SamplerTrial)  # without Tune's own constructor
    trial.setup({"search": search})
    for order, mask in enumerate(tiny_pipelines):
        trial.config = {"params": {"mask": mask, "cfg": 0.0}, "order": order}
        assert trial.step()["done"]
    assert [row["mask"] for row in read_rows(tmp_path)] == list(tiny_pipelines)
