"""Reading and encoding images in threads, in their order, a few ahead of whoever writes them."""

import io
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image

from srdd_platform.data.modes import BadImageError
from srdd_platform.data.sources import Item


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """An image of a source as it is stored, or why there is none."""

    item: Item
    png: bytes = b""
    error: str = ""
    first_of_many: bool = False  # of an animation, or of pages


def encoded(items: Iterable[Item], workers: int | None) -> Iterator[Encoded]:
    """Read and encode items.

    Args:
        items: in the order of what is returned.
        workers: threads; None for one a CPU, at most 8.
    """
    workers = workers or min(8, os.cpu_count() or 1)
    ahead: deque[Future[Encoded]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                ahead.append(pool.submit(_encode, item))
                if len(ahead) >= 4 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _encode(item: Item) -> Encoded:
    try:
        loaded = item.load()
    except BadImageError as error:
        return Encoded(item=item, error=str(error))
    buffer = io.BytesIO()
    Image.fromarray(loaded.pixels).save(buffer, "png")
    return Encoded(item=item, png=buffer.getvalue(), first_of_many=loaded.first_of_many)
