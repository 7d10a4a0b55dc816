"""``torch.compile``, with what it needs of a machine checked before any work begins."""

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from srdd.devices import find_device
from srdd.errors import UserError

_TRITON_FROM = (7, 0)  # compute capability of the oldest GPU that Triton's kernels run on


def check_compiler(device: torch.device) -> None:
    """Refuse ``--compile`` where torch could not build its code.

    For a CPU it writes C++, for CUDA it needs Triton, which builds a small C library.

    Raises:
        UserError: a compiler, Python's headers or Triton is missing, or the GPU is too old.
    """
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise _lacks("Triton", "pip install triton")
        if torch.cuda.get_device_capability(device) < _TRITON_FROM:
            raise UserError(
                f"--compile needs a GPU of compute capability 7.0 or newer, {device} is older: "
                "leave --compile out"
            )
        _check_tool("CC", ("gcc", "clang"), "a C compiler")
    else:
        default = "clang++" if sys.platform == "darwin" else "g++"
        _check_tool("CXX", (default,), "a C++ compiler")
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").is_file():
        raise _lacks(
            f"Python's headers ({include / 'Python.h'})", "as python3-dev or python3-devel"
        )


def check_machine(device: str, *, compiled: bool) -> torch.device:
    """The device of a training, where this machine has what the training needs.

    Raises:
        UserError: it has no such device, or ``compiled`` and :func:`check_compiler` refuses.
    """
    found = find_device(device)
    if compiled:
        check_compiler(found)
    return found


def _check_tool(variable: str, names: tuple[str, ...], what: str) -> None:
    """Refuse a machine without a compiler; ``variable`` may name another one."""
    given = os.environ.get(variable)
    if given and shutil.which(given) is None:
        raise UserError(
            f"--compile needs {what}, and {variable}={given} is none here: set {variable} to one, "
            "or leave --compile out"
        )
    if not given and not any(map(shutil.which, names)):
        raise _lacks(f"{what} ({' or '.join(names)})", f"or name one in {variable}")


def _lacks(what: str, how: str) -> UserError:
    return UserError(f"--compile needs {what}: install it ({how}), or leave --compile out")


def compile_function(
    function: Callable[..., Any], *, dynamic: bool, backend: str = "inductor"
) -> Callable[..., Any]:
    """``torch.compile`` of a function; what its compiler cannot build is wrong input, in one line.

    Args:
        function: called with tensors.
        dynamic: whether one piece of code serves all shapes.
        backend: torch.compile's.

    Returns:
        The function, compiled when first called. It then raises UserError if that fails.
    """
    from torch._dynamo.exc import BackendCompilerFailed  # torch.compile imports it in any case

    compiled = torch.compile(function, dynamic=dynamic, backend=backend)

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return compiled(*args, **kwargs)
        except BackendCompilerFailed as error:
            inner = error.inner_exception
            if isinstance(inner, torch.OutOfMemoryError | MemoryError | UserError):
                raise inner from None
            raise UserError(
                f"--compile: the compiled code could not be built ({_reason(inner)}): mend that, "
                "or leave --compile out"
            ) from error

    return call


def _reason(error: Exception) -> str:
    """The line of a compiler's output that says what is wrong, or the error's first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "error:" in line] or lines or ["no reason is given"]
    return telling[0][:200]
