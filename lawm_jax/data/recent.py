"""A small cache of recently used values."""

import collections
import threading


class Recent:
    """A thread-safe least-recently-used cache; pickling empties it."""

    def __init__(self, most):
        """Sets the number of values to keep."""
        self.most = most
        self._kept, self._lock = collections.OrderedDict(), threading.Lock()

    def __reduce__(self):
        return Recent, (self.most,)

    def get(self, key, make):
        """Returns the cached value, or calls `make(key)`; two threads may both call it."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        value = make(key)
        with self._lock:
            self._kept[key] = value
            while len(self._kept) > self.most:
                self._kept.popitem(last=False)  # an open file closes once it is unreferenced
        return value


def open_files():
    """Returns how many files a source may keep open: an eighth of the process's limit."""
    try:
        import resource
    except ImportError:  # Windows: 512 per process
        return 64
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1024 if soft == resource.RLIM_INFINITY else max(8, min(1024, soft // 8))
