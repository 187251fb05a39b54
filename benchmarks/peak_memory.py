"""What a block of code takes in resident memory, sampled while it runs."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading

import psutil

__all__ = ["PeakMemory"]


class PeakMemory:
    """Resident memory of this process above where it stood, in bytes: at most, and what stays."""

    def __enter__(self) -> PeakMemory:
        self._process, self._done = psutil.Process(), threading.Event()
        self._start = self._most = self._settled()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _settled(self) -> int:
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # only glibc hands freed memory back
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        return self._process.memory_info().rss

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self._most = max(self._most, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.peak, self.stays = self._most - self._start, self._settled() - self._start
