"""Uniform numbers as a pure function of where they are used, the same on every device.

A counter-based hash (SplitMix64's finaliser, Steele et al. 2014) replaces a generator's state: an
image depends neither on its batch nor on its neighbours, and trials that differ in one setting
share their random numbers.
"""

from enum import IntEnum, unique

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_SEED_BITS = 53  # exact in a float64, so a seed survives JSON and JavaScript


@unique
class Stream(IntEnum):
    """What random numbers are for: a counter of their hash. Files that exist depend on the values.

    A use without a stream of its own would share its numbers with another use.
    """

    CODES = 0x5A  # sampling: the codes of a scale
    REFINED = 0x4EF1  # training: which images see codes of their own scale
    REFINED_SHARE = 0x4EF2  # how many of them
    REFINED_CODES = 0x4EF3  # which of them
    SCALES = 0x5CA1E  # scales left out while a tokenizer quantises
    CODEBOOK = 0x5EED  # the codebook's first codes
    RESTART = 0xDEAD  # codes that take the place of unused ones
    DISCRIMINATOR = 0xD15C  # its first weights
    AUGMENTATION = 0xA06  # of what the discriminator sees
    LABELS = 0x1ABE1  # labels left out for guidance
    PATHS = 0xD309  # blocks left out
    SHIFTS = 0x51F7  # of a classifier's images


def _signed(value: int) -> int:
    """A 64-bit pattern as the int64 that torch holds."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64, elementwise: a bijection that avalanches."""
    x = (x ^ _shift(x, 30)) * _signed(_MIX_1)
    x = (x ^ _shift(x, 27)) * _signed(_MIX_2)
    return x ^ _shift(x, 31)


def hash_counters(*counters: Tensor | int) -> Tensor:
    """Hash int64 counters, broadcast against each other, to int64 bits."""
    device = next((c.device for c in counters if isinstance(c, Tensor)), torch.device("cpu"))
    bits = torch.zeros((), dtype=torch.int64, device=device)
    for counter in counters:  # an int stays on the host: a copy would wait for the device
        step = counter if isinstance(counter, Tensor) else _signed(counter)
        bits = mix((bits ^ step) + _signed(_GOLDEN))
    return bits


def uniform(*counters: Tensor | int) -> Tensor:
    """Uniforms in [0, 1) with 32 bits, float64, one for each broadcast tuple of counters."""
    return _shift(hash_counters(*counters), 32).to(torch.float64) * 2.0**-32


def image_seed(job_seed: int, i: int) -> int:
    """The seed of image ``i`` of a job: the same in CLI, evaluator and server.

    Image 0 has the job's own seed, so any image can be drawn again alone from its seed.
    """
    if i == 0:
        return job_seed
    return int(_shift(hash_counters(job_seed, i), 64 - _SEED_BITS))


def image_seeds(job_seed: int, begin: int, end: int) -> Tensor:
    """Seeds of images ``begin`` to ``end`` of a job: int64 [end - begin]."""
    i_n = torch.arange(begin, end)
    bits_n = _shift(hash_counters(job_seed, i_n), 64 - _SEED_BITS)
    return torch.where(i_n == 0, job_seed, bits_n)
