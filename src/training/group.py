"""What the data-parallel processes of a run tell each other beside gradients."""

import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING

import numpy as np

from src.common.errors import MidasError

if TYPE_CHECKING:
    from mindspore import Parameter

# A collective operation gives up when a process is late: on the CPU after 30 s, on Ascend and GPU after minutes. What
# one process does alone may take longer: those who wait are told that the work goes on.
_HEARTBEAT_S = 5.0
_WORKING, _DONE, _FAILED = 1, 2, 3
_CHUNK = 1 << 22  # numbers that are summed at once


class Meeting:
    """Work of which each process does a share; those who have finished wait, and all of them hear if one is to stop.

    Every process calls ``is_asked`` before each item of its share, and ``finish`` once, after the last.

    Args:
        group: The processes.
        is_asked_here: Whether this process is to stop.
    """

    def __init__(self, group: "Group", is_asked_here: Callable[[], bool]):
        self._group, self._is_asked_here = group, is_asked_here
        self._is_asked = False

    def is_asked(self) -> bool:
        """Returns whether one of the processes is to stop, the same in all of them."""
        self._tell(1)
        return self._is_asked

    def finish(self) -> bool:
        """Waits for the others; returns whether one of the processes was to stop."""
        while self._tell(0):
            pass
        return self._is_asked

    def _tell(self, is_at_work: float) -> float:
        asked, at_work = self._group.sum(np.array([float(self._is_asked_here()), is_at_work])).tolist()
        self._is_asked = self._is_asked or asked > 0
        return at_work


class Group:
    """The processes that train together; with one process everything here is trivial.

    Args:
        rank: Number of this process, from 0.
        world: Number of processes. MindSpore's communication must have been initialised if there are several.
    """

    def __init__(self, rank: int = 0, world: int = 1):
        self.rank, self.world = rank, world
        self._all_reduce = None
        if world > 1:
            from mindspore import ops

            self._all_reduce = ops.AllReduce(ops.ReduceOp.SUM)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Adds float32 (n,) values over the processes; all of them must call it."""
        if self._all_reduce is None:
            return values
        from mindspore import Tensor

        return self._all_reduce(Tensor(values.astype(np.float32))).asnumpy()  # the CPU adds no other type

    def wait_for_all(self) -> None:
        """Returns when all processes are here."""
        self.sum(np.zeros(1))

    def first_does(self, work: Callable[[], np.ndarray], size: int) -> np.ndarray:
        """Lets the first process do something, and hands the result to all.

        Args:
            work: Called in the first process only, in a thread; returns float32 (size,).
            size: Of the result.

        Raises:
            MidasError: In the other processes, when ``work`` fails in the first, which raises what ``work`` has raised.
        """
        if self.world == 1:
            return work()
        if self.rank:
            status = _WORKING
            while status == _WORKING:
                (status,) = self.sum(np.zeros(1))
            if status == _FAILED:
                raise MidasError("process 0 has stopped; its log says why")
            return self.sum(np.zeros(size))
        future: Future = Future()
        threading.Thread(target=_fulfil, args=(future, work), daemon=True).start()  # a request to stop ends it, too
        while wait([future], timeout=_HEARTBEAT_S).not_done:
            self.sum(np.array([_WORKING]))
        self.sum(np.array([_FAILED if future.exception() else _DONE]))
        return self.sum(future.result())

    def first_finishes(self, work: Callable[[], None]) -> None:
        """Lets the first process finish something, however long it takes; the others wait. See ``first_does``."""

        def done() -> np.ndarray:
            work()
            return np.zeros(1)

        self.first_does(done, 1)

    def share(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the arrays that the first process has, in all of them.

        Args:
            arrays: Of numbers that float32 holds; of the same shapes and types in all processes.
        """
        parts = [array.ravel().astype(np.float32) for array in arrays]
        flat = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        if self.rank:
            flat[:] = 0
        for first in range(0, len(flat), _CHUNK):
            chunk = flat[first : first + _CHUNK]
            chunk[:] = self.sum(chunk)
        ends = np.cumsum([array.size for array in arrays])
        return [
            flat[end - array.size : end].reshape(array.shape).astype(array.dtype) for array, end in zip(arrays, ends)
        ]

    def synchronise(self, parameters: Mapping[str, "Parameter"]) -> None:
        """Gives the parameters of all processes the values that those of the first have.

        Checksums are compared first: usually all of them have read the same file.
        """
        if self.world == 1:
            return
        arrays, checksum = [parameter.asnumpy() for parameter in parameters.values()], 0
        for array in arrays:
            checksum = zlib.crc32(np.ascontiguousarray(array), checksum)
        if not self.find_others(checksum):
            return
        from mindspore import Tensor

        for parameter, array in zip(parameters.values(), self.share(arrays)):
            parameter.set_data(Tensor(array))

    def find_others(self, checksum: int) -> list[int]:
        """Lists the processes that have another checksum (32 bits) than the first; all of them must call it."""
        table = np.zeros((self.world, 2))  # a row a process: the halves of its checksum, which float32 holds exactly
        table[self.rank] = checksum >> 16, checksum & 0xFFFF
        table = self.sum(table.ravel()).reshape(self.world, 2)
        return [rank for rank, row in enumerate(table.tolist()) if row != table[0].tolist()]

    def check_equal(self, what: str, value: str) -> None:
        """Compares a text over the processes.

        Args:
            what: What it says, for the message.
            value: The text; surrogates, as in file names that are not UTF-8, are allowed.

        Raises:
            MidasError: In every process, if it is not the same in all of them.
        """
        others = self.find_others(zlib.crc32(value.encode("utf-8", "surrogateescape")))
        if others:
            ranks = ", ".join(map(str, others))
            raise MidasError(f"{what}: expected the same in all processes, found another in {ranks} than in 0")


def _fulfil(future: Future, work: Callable[[], np.ndarray]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # raised again where the result is asked for
        future.set_exception(error)
