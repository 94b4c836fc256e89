"""Damaged copies of a file, and giving them to a reader."""

import random
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from src.common.errors import fault_line

_SECONDS = 20  # for one file

_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 2**15 - 1, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1)


def mutations(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Yields damaged copies of ``data``: the same for the same seed, each with one to three faults.

    Half of the faults are near the start or the end, where formats have their tables.
    """
    rng = random.Random(seed)
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            rng.choice(_FAULTS)(changed, rng)
        yield bytes(changed)


def _place(data: bytearray, rng: random.Random) -> int:
    reach = min(len(data), 2048)
    where = rng.random()
    if where < 0.25:
        return rng.randrange(reach + 1)
    if where < 0.5:
        return len(data) - rng.randrange(reach + 1)
    return rng.randrange(len(data) + 1)


def _slice(data: bytearray, rng: random.Random) -> slice:
    start = _place(data, rng)
    return slice(start, start + rng.choice((1, 2, 4, 8, 32, 500, 5000)))


def _flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = _place(data, rng)
        if at < len(data):
            data[at] ^= 1 << rng.randrange(8)


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[_place(data, rng) :]


def _remove(data: bytearray, rng: random.Random) -> None:
    del data[_slice(data, rng)]


def _insert(data: bytearray, rng: random.Random) -> None:
    at = _place(data, rng)
    data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8, 100)))


def _duplicate(data: bytearray, rng: random.Random) -> None:
    piece, at = data[_slice(data, rng)], _place(data, rng)
    data[at:at] = piece


def _zero(data: bytearray, rng: random.Random) -> None:
    where = _slice(data, rng)
    data[where] = bytes(len(data[where]))


def _swap(data: bytearray, rng: random.Random) -> None:
    size = rng.choice((1, 4, 16, 200))
    a, b = _place(data, rng), _place(data, rng)
    if max(a, b) + size <= len(data) and abs(a - b) >= size:
        data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]


def _extreme(data: bytearray, rng: random.Random) -> None:
    size = rng.choice((1, 2, 4, 8))
    at = _place(data, rng)
    number = rng.choice(_EXTREMES) % 2 ** (8 * size)
    data[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))


_FAULTS = (_flip, _cut, _remove, _insert, _duplicate, _zero, _swap, _extreme)


def _too_long(*_: object) -> None:
    raise TimeoutError


def read_damaged(
    variants: Iterable[bytes], path: Path, read: Callable[[int], object], refusal: type[Exception], named: Path
) -> Counter:
    """Writes damaged copies of a file to ``path``, one after the other, and has them read.

    Prints each copy that is not taken as it should be: read, or refused with one line, in time.

    Args:
        variants: The copies.
        path: Where they are written.
        read: Reads ``path``; takes the number of the copy.
        refusal: What it may raise.
        named: The path that the line must name.

    Returns:
        How many were ``read``, ``refused``, refused with a ``bad text``, or led to another ``fault``.
    """
    signal.signal(signal.SIGALRM, _too_long)
    outcomes: Counter = Counter()
    for number, data in enumerate(variants):
        path.write_bytes(data)
        signal.alarm(_SECONDS)
        try:
            read(number)
            outcomes["read"] += 1
        except refusal as error:
            outcomes["refused"] += 1
            line = fault_line(error)  # as a script prints it: the text may hold names of the file
            if "\n" in line or str(named) not in line:
                print(f"number {number}: {line!r}")
                outcomes["bad text"] += 1
        except BaseException:
            print(f"number {number}:\n{traceback.format_exc()}")
            outcomes["fault"] += 1
        signal.alarm(0)
    return outcomes
