"""The shards that a process has open, of all its readers together: their number is limited."""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections import OrderedDict
from pathlib import Path

from supersam.data.manifest import ShardFolderError
from supersam.data.shard_file import OpenShard

_MOST = 1024
_MOST_BYTES = 256 << 20  # shards of small images have long indexes: thousands of images each
_TOO_MANY = (errno.EMFILE, errno.ENFILE)


class OpenFiles:
    """Open shards of one process, least recently used first. Thread-safe."""

    def __init__(self, most: int, most_bytes: int = _MOST_BYTES) -> None:
        """`most` shards stay open, and while they are several, `most_bytes` of their indexes."""
        self.most = most
        self.most_bytes = most_bytes
        self.pid = os.getpid()
        self._lock = threading.RLock()  # a reader may be collected, and forgotten, at any place
        self._shards: OrderedDict[tuple[object, Path], OpenShard] = OrderedDict()

    def __len__(self) -> int:
        return len(self._shards)

    @property
    def index_bytes(self) -> int:
        """Bytes of the indexes of the open shards."""
        # A list, as a reader may be collected meanwhile.
        return sum(shard.index_bytes for shard in list(self._shards.values()))

    def get(self, owner: object, path: Path) -> OpenShard:
        """Return the shard, opened for `owner` if it is not open.

        Raises DamagedShardError; ShardFolderError where the system refuses to open it.
        """
        key = (owner, path)
        with self._lock:
            if key not in self._shards:
                while len(self._shards) >= self.most:
                    self._shards.popitem(last=False)
                self._shards[key] = self._open(path)
                while len(self._shards) > 1 and self.index_bytes > self.most_bytes:
                    self._shards.popitem(last=False)
            self._shards.move_to_end(key)
            return self._shards[key]

    def forget(self, owner: object) -> None:
        """Close what was opened for `owner`, unless it is in use."""
        with self._lock:
            for key in [key for key in self._shards if key[0] is owner]:
                del self._shards[key]

    def _open(self, path: Path) -> OpenShard:
        try:
            return OpenShard(path)
        except OSError as error:
            if error.errno not in _TOO_MANY or not self._shards:
                raise _refused(path, error) from error
        self._shards.clear()  # others in this process need files too: make do with fewer
        self.most = max(1, self.most // 2)
        try:
            return OpenShard(path)
        except OSError as error:
            raise _refused(path, error) from error


def open_files() -> OpenFiles:
    """Return the open shards of this process; after a fork, the parent's are not ours."""
    global _files
    if _files is None or _files.pid != os.getpid():
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        allowed = _MOST if soft == resource.RLIM_INFINITY else soft // 2
        _files = OpenFiles(max(1, min(_MOST, allowed)))
    return _files


_files: OpenFiles | None = None


def _refused(path: Path, error: OSError) -> ShardFolderError:
    if error.errno in _TOO_MANY:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return ShardFolderError(
            f"{path} cannot be opened: this process may open {limit} files and has used them up; "
            "raise the limit (ulimit -n 4096)"
        )
    if error.errno == errno.ENOENT:
        return ShardFolderError(f"{path} was deleted or moved; bring it back, or convert it again")
    reason = os.strerror(error.errno) if error.errno else str(error)
    return ShardFolderError(f"{path} cannot be opened: {reason}; make it readable for this user")
