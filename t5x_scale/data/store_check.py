"""Compares the token stores of a run with their checksums while it trains: what has rotted is found, not trained on.

Small stores are read before the first step. Large ones are read by a thread at a pace that leaves the disk to the run,
once, shared out among the hosts; damage ends the run at its next batch. Stores in an object store are not read here:
each of their chunks is checked whenever it is fetched.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping

from t5x_scale.core.errors import UserError
from t5x_scale.data.token_store import TokenStore

logger = logging.getLogger(__name__)

# Bytes of a store that is read at once: some hundredths of a second.
SMALL = 2**26
# Where it begins, and where its targets do.
_DOCUMENT_BYTES = 12
# Bytes a second of the thread that reads the others.
PACE = 2**28


class StoreCheck:
    """Checks stores once. `raise_if_damaged` may be called from any thread."""

    def __init__(
        self,
        stores: Mapping[str, TokenStore],
        *,
        process_index: int = 0,
        process_count: int = 1,
        small: int = SMALL,
        pace: float = PACE,
    ):
        """Checks the small stores now and starts on the large ones.

        Args:
          stores: {source: store}.
          process_index, process_count: of large stores this host reads its part.
          small: bytes up to which a store is read at once.
          pace: bytes a second at most of the thread.

        Raises:
          UserError: a small store is damaged.
        """
        large = []
        for name in sorted(stores):
            store = stores[name]
            if store.checks_itself:
                continue
            if store.num_bytes + _DOCUMENT_BYTES * store.num_documents <= small:
                store.verify()
            else:
                large.append(store)
        self._damage: UserError | None = None
        self._thread: threading.Thread | None = None
        if large:
            work = (large, process_index, process_count, pace)
            self._thread = threading.Thread(target=self._read, args=work, name="store check", daemon=True)
            self._thread.start()

    def raise_if_damaged(self) -> None:
        """Raises the UserError that names the first damage found so far, if there is any."""
        if self._damage is not None:
            raise self._damage

    def wait(self) -> None:
        """Waits until everything has been read, and raises as `raise_if_damaged`."""
        if self._thread is not None:
            self._thread.join()
        self.raise_if_damaged()

    def _read(self, stores: list[TokenStore], process_index: int, process_count: int, pace: float) -> None:
        try:
            for store in stores:
                if process_index == 0:
                    store.verify_documents()
                for block in range(process_index, store.num_blocks, process_count):
                    begin = time.monotonic()
                    size = store.verify_block(block)
                    time.sleep(max(size / pace - (time.monotonic() - begin), 0.0))
                logger.info("%s: every token read by this host matches its checksum", store.directory)
        except UserError as error:
            self._damage = error
        except OSError as error:
            self._damage = UserError(f"cannot read the token store {store.directory}: {error}")
            self._damage.__cause__ = error
