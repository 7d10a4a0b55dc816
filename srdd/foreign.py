"""State dicts from elsewhere: found in what a trainer saved, under plain names, as float32."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from srdd.errors import UserError

# Where trainers keep a model, the best first: its moving average before itself.
_PLACES = (
    "ema", "model_ema", "ema_model", "params_ema", "ema_state_dict", "state_dict",
    "model_state_dict", "model", "net", "params", "generator", "trainer",
)  # fmt: skip
_WRAPPED = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_BEFORE_ALL = ("module.", "model.")
_DEPTH = 4  # of dictionaries in dictionaries
_SHOWN = 3  # names that a message lists


@dataclass(frozen=True, slots=True)
class Found:
    """A state dict inside a checkpoint."""

    place: str  # "trainer.var_wo_ddp"; "" for the whole file
    state: dict[str, Any]  # under plain names

    @property
    def key(self) -> str:
        """The name under which the trainer kept it."""
        return self.place.rpartition(".")[2]


def find_state(
    loaded: Mapping[str, Any], names: Sequence[str], fits: Callable[[Mapping[str, Any]], bool]
) -> Found | None:
    """The first state dict inside a checkpoint that fits.

    Args:
        loaded: what :func:`srdd.weight_files.read_weights` returned.
        names: the keys under which a known trainer keeps the model, best first; those that many
            trainers use (``ema``, ``state_dict``, ``model``) and any others come after.
        fits: whether a state dict, under plain names, is of the model wanted.
    """
    for place, state in _levels(loaded, names):
        plain = plain_names(state)
        if fits(plain):
            return Found(place, plain)
    return None


def main_state(loaded: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict with the most tensors inside a checkpoint, under plain names."""
    levels = [state for _, state in _levels(loaded, ())]
    return plain_names(max(levels, key=lambda s: sum(isinstance(v, Tensor) for v in s.values())))


def _levels(
    loaded: Mapping[str, Any], names: Sequence[str], place: str = "", depth: int = _DEPTH
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A checkpoint, and the dictionaries in it, each with where it is."""
    yield place, loaded
    if not depth:
        return
    order = dict.fromkeys(n for n in (*names, *_PLACES, *loaded) if n in loaded)
    for name in order:
        inner = loaded[name]
        if isinstance(inner, Mapping) and all(isinstance(key, str) for key in inner):
            yield from _levels(inner, names, f"{place}.{name}" if place else name, depth - 1)


def plain_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict without the prefixes of DataParallel, torch.compile, FSDP and the like.

    Raises:
        UserError: two tensors would then have one name.
    """
    names = {name: _WRAPPED.sub("", name) for name in state}
    tensors = [name for name, value in state.items() if isinstance(value, Tensor)]
    while tensors and (
        before := next((b for b in _BEFORE_ALL if all(names[n].startswith(b) for n in tensors)), "")
    ):
        names = {name: plain.removeprefix(before) for name, plain in names.items()}
    found: dict[str, str] = {}
    for name, plain in names.items():
        if plain in found:
            raise UserError(f"{found[plain]} and {name} are the same parameter")
        found[plain] = name
    return {plain: state[name] for plain, name in found.items()}


def listed(names: Iterable[str]) -> str:
    """Names for one line: the first few, and how many more there are."""
    every = sorted(name if name.isprintable() else repr(name) for name in names)
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return ", ".join(every[:_SHOWN]) + more


def check_tensors(expected: Mapping[str, Tensor], given: Mapping[str, Any]) -> None:
    """Refuse what is not tensors of the names and shapes expected.

    Raises:
        UserError: names are missing or unknown, one is no tensor, or a shape is wrong; the first
            few are named.
    """
    missing, unknown = expected.keys() - given.keys(), given.keys() - expected.keys()
    if missing or unknown:
        parts = [f"missing {listed(missing)}"] * bool(missing)
        parts += [f"unknown {listed(unknown)}"] * bool(unknown)
        raise UserError(f"the keys do not fit: {'; '.join(parts)}")
    if others := [name for name in expected if not isinstance(given[name], Tensor)]:
        raise UserError(f"not tensors: {listed(others)}")
    wrong = [
        f"{name} {list(given[name].shape)} (needs {list(tensor.shape)})"
        for name, tensor in expected.items()
        if given[name].shape != tensor.shape
    ]
    if wrong:
        raise UserError(f"the shapes do not fit: {listed(wrong)}")


def is_plain(value: Any) -> bool:
    """Whether a value is a dense tensor whose values are there."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def owned(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors as float32, none sharing memory with another, as safetensors needs them.

    Those that are float32 and alone already are not copied.

    Raises:
        UserError: one is not floating point, not finite, or larger than its stored values.
    """
    seen: set[int] = set()
    result = {}
    for name, given in tensors.items():
        if not isinstance(given, Tensor):
            raise UserError(f"{name} is a {type(given).__name__}, not a tensor")
        tensor = given.detach()
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            raise UserError(f"{name} is {tensor.dtype}, {tensor.layout}, not dense floats")
        if tensor.is_meta:  # shapes alone
            result[name] = tensor
            continue
        storage = tensor.untyped_storage()
        size = tensor.numel() * tensor.element_size()
        if size > storage.nbytes():
            raise UserError(f"{name} claims {size} bytes and stores {storage.nbytes()}")
        if storage.data_ptr() in seen or storage.nbytes() > size:
            tensor = tensor.clone()
        seen.add(storage.data_ptr())
        result[name] = tensor.float().contiguous()
        if not bool(torch.isfinite(result[name]).all()):
            raise UserError(f"{name} holds values that are not finite")
    return result
