"""An object store in memory, as fsspec sees one: generations, conditional writes, and listings that its client caches.

Where google-cloud-storage compares `ifGenerationMatch=0`, mode "create" does: it refuses an object that has a generation.
"""

import threading
import time

from fsspec import AbstractFileSystem


class ObjectStore(AbstractFileSystem):
    """Objects by path, each with its content and generation; `requests` counts what reached the store."""

    cachable = False

    def __init__(self, latency_s: float = 0.0):
        super().__init__()
        self.objects, self.requests, self.latency_s = {}, 0, latency_s
        self._lock, self._listings = threading.Lock(), {}

    def _request(self):
        self.requests += 1
        time.sleep(self.latency_s)

    def pipe_file(self, path, value, mode="overwrite", **_):
        self._request()
        with self._lock:
            _, generation = self.objects.get(path, (b"", 0))
            if mode == "create" and generation != 0:
                raise FileExistsError(path)
            self.objects[path] = (bytes(value), generation + 1)

    def cat_file(self, path, **_):
        self._request()
        with self._lock:
            if path not in self.objects:
                raise FileNotFoundError(path)
            return self.objects[path][0]

    def ls(self, path, detail=True, **_):
        if path not in self._listings:
            self._request()
            with self._lock:
                self._listings[path] = [name for name in self.objects if name.rpartition("/")[0] == path]
        found = self._listings[path]
        if not found:
            raise FileNotFoundError(path)
        return [{"name": name, "type": "file"} for name in found] if detail else found

    def rm_file(self, path):
        self._request()
        with self._lock:
            if self.objects.pop(path, None) is None:
                raise FileNotFoundError(path)

    def invalidate_cache(self, path=None):
        self._listings.clear()
