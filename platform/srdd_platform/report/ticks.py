"""Ticks of an axis: round values between its ends."""

import math


def apart(ticks: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """The ticks that can be read: both ends and those not too close to the one below."""
    kept = ticks[:1]
    for tick in ticks[1:-1]:
        if tick[0] - kept[-1][0] >= 0.05 and ticks[-1][0] - tick[0] >= 0.05:
            kept.append(tick)
    return [*kept, *ticks[1:][-1:]]


def share(value: float, low: float, high: float) -> float:
    """How far a value is on the way from the low end to the high one."""
    return (value - low) / (high - low) if high > low else 0.5


def round_values(low: float, high: float, *, log: bool) -> list[float]:
    """Both ends and the round values well between them: powers of ten, or of a 1-2-5 step."""
    if low == high:
        return [low]
    if log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        factors = (1,) if last - first > 2 else (1, 2, 5)
        inner = [f * 10.0**p for p in range(first, last + 1) for f in factors]
        gap = 0.08 * math.log10(high / low)
        inside = [v for v in inner if v > low * 10**gap and v < high / 10**gap]
    else:
        raw = (high - low) / 4
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(f * power for f in (1, 2, 5, 10) if f * power >= raw)
        gap = 0.08 * (high - low)
        count = range(math.ceil(low / step), math.floor(high / step) + 1)
        inside = [i * step for i in count if low + gap < i * step < high - gap]
    return [low, *inside, high]
