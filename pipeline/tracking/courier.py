"""The thread that delivers a journal while training goes on."""

from __future__ import annotations

import logging
import threading
import time

from pipeline.tracking.config import TrackingConfig
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.secrets import redact

log = logging.getLogger(__name__)

THREAD_NAME = "tracking"


class Courier:
    """Delivers in the background; an outage costs one warning."""

    def __init__(self, delivery: Delivery, config: TrackingConfig, *, quiet: bool = False) -> None:
        """Starts the thread.

        Args:
            delivery: What it does again and again.
            config: Its pauses and patience.
            quiet: Leave the warnings to another courier of the same run.
        """
        self._delivery = delivery
        self._config = config
        self._quiet = quiet
        self._warned = quiet
        self._wake = threading.Event()
        self._closing = threading.Event()
        logging.getLogger("urllib3.connectionpool").addFilter(_not_of_couriers)
        self._thread = threading.Thread(target=self._work, name=THREAD_NAME, daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """Tells the thread that there is something to deliver; returns at once."""
        self._wake.set()

    def close(self, timeout_s: float | None = None) -> bool:
        """Waits, for a bounded time, until the journal is delivered.

        Args:
            timeout_s: Longest wait; None takes the configured one.

        Returns:
            Whether everything was delivered.
        """
        self._closing.set()
        self._wake.set()
        self._thread.join(self._config.close_timeout_s if timeout_s is None else timeout_s)
        # What follows says it all; a try that is still going on needs no words of its own.
        self._warned = True
        journal = self._delivery.journal
        left = sum(1 for _ in journal.pending())
        if left and not self._quiet:
            log.warning(
                "%d entries did not reach %s; they are kept: prefixworks runs sync %s",
                left,
                redact(self._delivery.identity.location.uri),
                journal.run_dir,
            )
        return left == 0

    def _work(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            closing = self._closing.is_set()
            delivered = self._try()
            if closing or (not delivered and self._closing.is_set()):
                return
            # Between two deliveries entries gather, and go in one call.
            pause = self._config.delivery_s if delivered else self._config.retry_s
            self._closing.wait(pause)
            if not delivered:
                self._wake.set()

    def _try(self) -> bool:
        began = time.monotonic()
        try:
            self._delivery.deliver()
        except Exception as error:  # the thread's boundary: training must not notice
            if not self._warned:
                reason = redact(str(error)).splitlines()[0] if str(error) else type(error).__name__
                log.warning(
                    "MLflow is not reached, training goes on (tried for %.0f s): %s",
                    time.monotonic() - began,
                    reason,
                )
            self._warned = True
            return False
        return True


def _not_of_couriers(record: logging.LogRecord) -> bool:
    """Drops urllib3's own warning for each retry: the courier says it once, in its own words."""
    return record.threadName != THREAD_NAME
