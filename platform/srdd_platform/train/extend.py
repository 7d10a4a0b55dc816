"""Going on beyond a run's last step: a recorded event, not another configuration.

``config.json`` of an extended run holds ``extensions``: the steps it went from and to, in order.
Only the last may be unfinished, and a run's ``model/`` stays that of the steps before until it is.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from srdd.errors import UserError
from srdd_platform.core.files import read_json, write_json
from srdd_platform.core.runs import CONFIG
from srdd_platform.train.job import Job


def _events(run: Path) -> list[dict[str, Any]]:
    """The extensions of a run, oldest first; none where there is no run yet."""
    if not (run / CONFIG).exists():
        return []
    config = read_json(run / CONFIG)
    return list(config.get("extensions", [])) if isinstance(config, dict) else []


def is_finished(run: Path) -> bool:
    """Whether a run directory holds its finished model."""
    return (run / "model").is_dir() and all(event["finished"] for event in _events(run))


def extends(job: Job) -> bool:
    """Whether a job asks for more steps than its run has."""
    return job.extend_to > max([0, *(int(event["to"]) for event in _events(Path(job.run)))])


def extended(job: Job) -> Job:
    """A job with all its steps: those recorded, and those it asks for, which are recorded now.

    Called with the run directory held.

    Raises:
        UserError: it asks for no more steps than the run has.
    """
    run = Path(job.run)
    events = _events(run)
    last = int(events[-1]["to"]) if events else replace(job, extend_to=0).steps
    if not job.extend_to:
        return replace(job, extend_to=last) if events else job
    if events and job.extend_to == last:  # the same command again
        return job
    if job.extend_to <= last:
        raise UserError(f"{run} has {last} steps: --extend-to must exceed them")
    if events and not events[-1]["finished"]:
        events[-1]["to"] = job.extend_to
    else:
        events.append({"from": last, "to": job.extend_to, "finished": False})
    write_json(run / CONFIG, {**read_json(run / CONFIG), "extensions": events})
    return job


def mark_finished(run: Path) -> None:
    """Record that the last extension is done; ``model/`` is written."""
    if events := _events(run):
        config = read_json(run / CONFIG)
        done = [{**event, "finished": True} for event in events]
        write_json(run / CONFIG, {**config, "extensions": done})
