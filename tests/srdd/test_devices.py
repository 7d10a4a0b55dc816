"""Devices and dtypes are found by their names, and refused by the option that gave them."""

import pytest
import torch

from srdd.devices import DTYPES, check_dtype, find_device, find_dtype
from srdd.errors import UserError


def test_a_dtype_is_torchs_of_that_name() -> None:
    found = [find_dtype(name) for name in DTYPES]
    assert found == [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("name", ["int8", "float64", "fp16", "", "float32 ", "nn"])
def test_other_dtypes_are_refused(name: str) -> None:
    for refuses in (check_dtype, find_dtype):
        with pytest.raises(UserError) as caught:
            refuses(name)
        assert str(caught.value) == (
            f"--dtype must be one of float32, bfloat16, float16, got {name!r}"
        )


def test_a_device_is_found_or_the_names_are_told() -> None:
    assert find_device("cpu") == torch.device("cpu")
    for name in ("gpu", "mps", ""):
        with pytest.raises(UserError, match="use cpu, cuda or cuda:1"):
            find_device(name)
