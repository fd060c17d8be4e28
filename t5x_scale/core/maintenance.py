"""The platform's notice that this machine will be taken away, from the metadata server of Google Cloud.

A spot machine is `preempted` half a minute before it ends; a machine with TPUs or GPUs is told by `maintenance-event`
up to an hour before its host is stopped. Both are asked for every few seconds, by a thread that ends where nobody
answers: on a laptop, at another provider.
"""

from __future__ import annotations

import http.client
import logging
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable

LOGGER = logging.getLogger(__name__)

ADDRESS = "metadata.google.internal"
# By which Google's own libraries are told of another one.
ADDRESS_VARIABLE = "GCE_METADATA_HOST"
_FLAVOR = {"Metadata-Flavor": "Google"}
# What is asked for -> the answers that end this machine. A migration does not: the machine goes on elsewhere.
_ENDINGS = {"preempted": ("TRUE",), "maintenance-event": ("TERMINATE_ON_HOST_MAINTENANCE",)}
_TIMEOUT_SECONDS = 2.0
_MAX_ANSWER = 256
# A server that has answered once may be restarted under us.
_MAX_FAILURES = 60


class MaintenanceWatch:
    """Within its context, calls `on_notice` once with what the platform announces, from a thread of its own.

    Args:
      on_notice: what is to happen.
      poll_seconds: between two questions.
      address: host, or host:port, of the metadata server; the platform's by default.
    """

    def __init__(self, on_notice: Callable[[str], None], poll_seconds: float, address: str | None = None):
        self._on_notice, self._poll_seconds = on_notice, poll_seconds
        self._address = address or os.environ.get(ADDRESS_VARIABLE) or ADDRESS
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="maintenance", daemon=True)

    def __enter__(self) -> MaintenanceWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Not waited for: it may be looking up a name that nobody knows.
        self._closing.set()

    def _run(self) -> None:
        failures, has_answered = 0, False
        while not self._closing.is_set():
            try:
                notice = self._ask()
                failures, has_answered = 0, True
            except (OSError, ValueError, http.client.HTTPException):
                failures += 1
                if not has_answered or failures == _MAX_FAILURES:
                    if has_answered:
                        LOGGER.warning("%s does not answer any more: maintenance will not be noticed", self._address)
                    return
                notice = None
            if notice is not None and not self._closing.is_set():
                LOGGER.warning("the platform announces %s: the run stops after the step at hand", notice)
                self._on_notice(notice)
                return
            self._closing.wait(self._poll_seconds)

    def _ask(self) -> str | None:
        """What is announced, in the server's words; None if nothing is."""
        for name, endings in _ENDINGS.items():
            answer = self._read(name)
            if answer in endings:
                return f"{name}: {answer}"
        return None

    def _read(self, name: str) -> str:
        """An entry of this machine.

        Raises:
          OSError: nobody answers, or somebody who is no metadata server.
        """
        url = f"http://{self._address}/computeMetadata/v1/instance/{name}"
        # Never through a proxy: the server is this machine's own.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(urllib.request.Request(url, headers=_FLAVOR), timeout=_TIMEOUT_SECONDS) as reply:
            if reply.headers.get("Metadata-Flavor") != "Google":
                raise OSError(f"{self._address} is no metadata server")
            return reply.read(_MAX_ANSWER).decode("ascii", "replace").strip()
