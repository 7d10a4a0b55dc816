"""What a person reads when a training ends with an error of its task."""

import errno
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

from srdd.errors import UserError
from srdd.metrics.classifier import ClassifierConfig
from srdd.train.config import OptimConfig
from srdd_platform.core.file_errors import StoreError
from srdd_platform.train.job import Job
from srdd_platform.train.kind import Settings
from srdd_platform.train.kinds import KINDS
from srdd_platform.train.launcher import explain_failure


def a_job(run: Path) -> Job:
    settings = Settings(
        model=ClassifierConfig(num_classes=2, resolution=16), optim=OptimConfig(steps=1)
    )
    return Job(kind=KINDS["classifier"], run=str(run), data="", settings=settings)


@pytest.mark.parametrize(
    ("cause", "text"),
    [
        (UserError("the batch is too small"), "the batch is too small"),
        (StoreError("cannot read s3://b/x: it does not exist"),
         "{run}: cannot read s3://b/x: it does not exist"),
        (OSError(errno.EROFS, "Read-only file system", "/data/x"),
         "{run}: /data/x: the file system is read-only: give a path that can be written"),
        (OSError(errno.ETIMEDOUT, "Connection timed out"), "{run}: Connection timed out"),
    ],
)  # fmt: skip
def test_wrong_input_and_what_a_file_or_a_store_says_is_one_line(
    tmp_path: Path, cause: Exception, text: str
) -> None:
    job = a_job(tmp_path)
    told = explain_failure(job, RayTaskError("run_training", "Traceback", cause))
    assert isinstance(told, UserError)
    assert str(told) == text.format(run=tmp_path)


def test_a_bug_keeps_its_trace(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    bug = KeyError("x")
    assert explain_failure(job, RayTaskError("run_training", "Traceback", bug)) is bug
