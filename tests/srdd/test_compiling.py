"""What ``--compile`` needs, told before it is used; and what its compiler says, in one line."""

import importlib.util
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from srdd import Pipeline, SamplerConfig
from srdd.compiling import check_compiler, check_machine, compile_function
from srdd.devices import find_device
from srdd.errors import UserError
from srdd.var.accelerate import check_accelerators, make_sampler

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
MakePipeline = Callable[..., Pipeline]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with headers and no program at all; returns the one directory of its PATH."""
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    headers = tmp_path / "include"
    headers.mkdir()
    (headers / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(headers))
    return tmp_path


def program(path: Path) -> None:
    path.touch()
    path.chmod(0o755)


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch, bare: Path) -> None:
    """Triton and a GPU that it runs on."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name if name == "triton" else found(name)
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


def test_a_cpu_needs_a_cpp_compiler(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pytorch#116696: runtime images have none, and torch says so in a traceback."""
    with pytest.raises(UserError, match=r"^--compile needs a C\+\+ compiler .*install it"):
        check_compiler(CPU)
    program(bare / "gcc")  # C alone will not do
    with pytest.raises(UserError, match=r"a C\+\+ compiler"):
        check_compiler(CPU)
    monkeypatch.setenv("CXX", "clang++-19")
    with pytest.raises(UserError, match=r"CXX=clang\+\+-19 is none here: set CXX to one"):
        check_compiler(CPU)
    program(bare / "clang++-19")
    check_compiler(CPU)


@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_a_gpu_needs_a_c_compiler_for_triton(a_gpu: None, bare: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"^--compile needs a C compiler \(gcc or clang\)"):
        check_compiler(CUDA)
    program(bare / name)
    check_compiler(CUDA)


def test_a_gpu_needs_triton_and_must_not_be_too_old(
    a_gpu: None, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(bare / "gcc")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    with pytest.raises(UserError, match=r"capability 7\.0 or newer, cuda:0 is older: leave"):
        check_compiler(CUDA)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs Triton: install it \(pip install triton\)"):
        check_compiler(CUDA)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_both_need_pythons_headers(
    a_gpu: None, bare: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """The compiler would say: fatal error: Python.h: No such file or directory."""
    for name in ("g++", "clang++", "gcc"):
        program(bare / name)
    (bare / "include" / "Python.h").unlink()
    with pytest.raises(UserError, match=r"Python's headers \(.*Python\.h\): install it \(as pyth"):
        check_compiler(torch.device(device))


def test_what_the_compiler_says_is_one_line() -> None:
    def failing(message: str) -> Callable[..., Any]:
        def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
            raise RuntimeError(message)

        return compile_function(lambda x: x + 1, dynamic=False, backend=backend)  # type: ignore[arg-type]

    log = "C++ compile error\n\nCommand:\ng++ x\n\nOutput:\nx.cpp:1: fatal error: omp.h: no\n 1 |"
    for message, said in (
        (log, "x.cpp:1: fatal error: omp.h: no"),
        ("a\nb", "a"),
        ("", "no reason is given"),
    ):
        torch.compiler.reset()
        with pytest.raises(UserError, match=r"^--compile: the compiled code could not") as caught:
            failing(message)(torch.ones(1))
        assert f"({said}" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_compiled_function_is_the_function_and_its_own_errors_pass() -> None:
    def half(x: Tensor) -> Tensor:
        return x / 2

    compiled = compile_function(half, dynamic=False, backend="eager")
    assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 0.5))
    with pytest.raises(TypeError):
        compiled(torch.ones(2), 3)


def test_memory_that_is_not_enough_stays_what_it_is() -> None:
    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    torch.compiler.reset()
    with pytest.raises(torch.OutOfMemoryError):
        compile_function(lambda x: x + 1, dynamic=False, backend=backend)(torch.ones(1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("chosen", "device", "said"),
    [
        ({"cuda_graph": True}, CPU, "--cuda-graph needs a CUDA device, this is cpu: leave it out"),
        ({"int8": True}, CUDA, "--int8 runs on a CPU, this is cuda:0"),
        ({"int8": True, "cuda_graph": True}, CPU, "--cuda-graph needs a CUDA device"),
        ({"compiled": True}, CPU, r"--compile needs a C\+\+ compiler"),
    ],
)
def test_the_python_api_asks_the_same(
    make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch, bare: Path,
    chosen: dict[str, bool], device: torch.device, said: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    with pytest.raises(UserError, match=f"^{said}"):
        check_accelerators(device, **chosen)
    if device == CPU:
        with pytest.raises(UserError, match=f"^{said}"):
            make_sampler(make_pipeline(), SamplerConfig(), 1, **chosen)
    check_accelerators(device)


def test_a_training_asks_for_its_device_and_compiler(bare: Path) -> None:
    assert check_machine("cpu", compiled=False) == CPU
    with pytest.raises(UserError, match=r"^--compile needs a C\+\+ compiler"):
        check_machine("cpu", compiled=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_a_device_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(UserError, match=f"^--device {name}: torch finds no CUDA device here"):
        find_device(name)
    with pytest.raises(UserError, match=f"^--device {name}"):
        check_machine(name, compiled=False)


@pytest.mark.parametrize("name", ["gpu", "mps", "", "cuda:x", "meta"])
def test_a_device_of_another_kind_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"^no device '{name}': use cpu, cuda or cuda:1$"):
        find_device(name)


def test_the_compiler_here_is_the_one_that_is_found() -> None:
    """Where torch can compile, nothing is refused."""
    if shutil.which("g++") and Path(sysconfig.get_path("include"), "Python.h").is_file():
        check_compiler(CPU)
