import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent


def _python(code: str) -> str:
    """What a fresh interpreter prints, started in the root of the repository."""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


def _files() -> list[Path]:
    """What git tracks or would track; everything that is not ignored, in a tree without git."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_the_folder_platform_does_not_hide_the_standard_module() -> None:
    assert _python("import platform; print(platform.python_version())") == sys.version.split()[0]


@pytest.mark.parametrize("folder", ["platform/__init__.py", "tests/**/__init__.py"])
def test_folders_that_must_not_be_packages(folder: str) -> None:
    assert not list(ROOT.glob(folder))


def test_the_science_imports_neither_ray_nor_tools() -> None:
    foreign = (
        "ray", "optuna", "pandas", "plotly", "webdataset", "torch_fidelity", "torchvision", "tyro",
        "rich", "huggingface_hub", "PIL", "sklearn",
    )  # fmt: skip
    loaded = _python(
        "import pkgutil, importlib, sys, srdd\n"
        "for module in pkgutil.walk_packages(srdd.__path__, 'srdd.'):\n"
        "    importlib.import_module(module.name)\n"
        f"print(*sorted(set(sys.modules) & set({foreign})))"
    )
    assert loaded == ""


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports inside functions count."""
    graph = grimp.build_graph("srdd", "srdd_platform")
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    TopologicalSorter(imports).prepare()  # a circle raises CycleError, which names its modules


def test_no_file_names_a_folder_of_one_machine() -> None:
    pattern = re.compile(rb"(^|[^a-zA-Z.])/(home|root|work|Users)/", re.MULTILINE)
    found = [
        f"{path.relative_to(ROOT)}: {match.group().decode()}"
        for path in _files()
        if path != Path(__file__).resolve()
        and b"\0" not in (content := path.read_bytes())
        and (match := pattern.search(content))
    ]
    assert not found


def test_constraints_pin_every_direct_dependency_within_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines)
    assert lines == [f"{name}=={version}" for name, version in pins.items()]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line) for line in lines)
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in (Requirement(line) for group in groups for line in group):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not pinned"
        assert requirement.specifier.contains(version), f"{requirement} excludes {version}"
