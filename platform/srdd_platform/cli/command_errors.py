"""How a command ends when something is wrong: one line on standard error and an exit code.

Wrong input, a full disk or a file that cannot be read ends with exit code 2, Ctrl-C with 130,
SIGTERM with 143. A bug keeps its traceback.
"""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from srdd.errors import UserError
from srdd_platform.cli.streams import prepare_streams
from srdd_platform.core.file_errors import explain
from srdd_platform.core.interrupts import terminated


def guarded(action: Callable[[], None]) -> None:
    """Run a command. What is wrong with its input ends it in one line; a bug keeps its trace."""
    prepare_streams()
    try:
        try:
            action()
        except Exception as error:
            cause = _of_task(error)  # without the task's traceback
            if isinstance(cause, UserError | OSError):
                raise cause from None
            raise
    except (UserError, FloatingPointError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        what, code = ("terminated", 143) if terminated() else ("interrupted", 130)
        _fail(f"{what}; give the same command again to go on", code=code)
    except BrokenPipeError:
        os._exit(1)
    except (MemoryError, RuntimeError) as error:
        from srdd_platform.core.out_of_memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        _fail("out of memory: ask for less at once (--batch-size), or use a device with more")
    except OSError as error:
        text = explain(error)
        if text is None:
            raise
        _fail(text)


def _of_task(error: Exception) -> object:
    """What a task of Ray raised, if that is what came; Ray need not have been imported."""
    ray_exceptions = sys.modules.get("ray.exceptions")
    is_task = ray_exceptions is not None and isinstance(error, ray_exceptions.RayTaskError)
    return getattr(error, "cause", None) if is_task else None


def _fail(message: str, code: int = 2) -> NoReturn:
    print(f"srdd: {one_line(message)}", file=sys.stderr)
    sys.exit(code)


def one_line(text: str) -> str:
    """A text on one line. What a terminal cannot print, or would obey, is escaped."""
    joined = " ".join(text.split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in joined)
