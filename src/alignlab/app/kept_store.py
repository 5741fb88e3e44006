"""The database of judgements as the app uses it: opened when it is first needed, opened again after it failed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from alignlab.core.errors import StoreError

if TYPE_CHECKING:
    from alignlab.core.store import Store

PATIENCE = 5.0
"""Seconds that a change waits for other writers: a person waits for the answer."""


class KeptStore:
    """One store for all users of a server. What it raises names the database; the next use tries again."""

    def __init__(self, url: str | None) -> None:
        """`url` None: the default store."""
        self._url = url
        self._lock = threading.Lock()
        self._open: Store | None = None

    def exists(self) -> bool:
        """Whether there is a database to read: false of a SQLite file that nobody has made yet."""
        from alignlab.core.store.database import default_url, parse_url

        url = parse_url(self._url if self._url is not None else default_url())
        return url.get_backend_name() != "sqlite" or Path(str(url.database)).exists()

    @contextmanager
    def use(self, *, create: bool = False) -> Iterator[Store]:
        """The open store. Without `create` a SQLite file that does not exist is an error, as everywhere StoreError.

        After a StoreError it is opened anew at the next use: the file may have been put back, the server restarted.
        """
        with self._lock:
            if self._open is None:
                from alignlab.core.store import open_store

                self._open = open_store(self._url, timeout=PATIENCE, create=create)
            store = self._open
        try:
            yield store
        except StoreError:
            self.close(store)
            raise

    def close(self, store: Store | None = None) -> None:
        """Let go of the database (of `store`, if that is still the one); the next use opens it again."""
        with self._lock:
            found = self._open if store is None else store
            if found is self._open:
                self._open = None
        if found is not None:
            found.close()
