"""The record of a sweep: the MLflow run that is the parent of its trials' runs.

The folder of a sweep is recorded like that of a run: what there is to tell goes into a journal
first, so a server that is down delays it, and `prefixworks runs sync` delivers it. Processes that
run trials of one sweep share the folder, whose lock lets one of them at a time talk to the store:
so they make one parent, however many start at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.errors import RegistryError
from pipeline.tracking.config import TrackingConfig, resolve_store
from pipeline.tracking.delivery import Delivery
from pipeline.tracking.entries import Entry
from pipeline.tracking.identity import new_identity, read_identity
from pipeline.tracking.introduction import NOTE_TAG, artifact
from pipeline.tracking.journal import Journal
from pipeline.tracking.reports import metrics_entry, now_ms
from pipeline.tracking.secrets import redact

log = logging.getLogger(__name__)

_PAUSE_S = 0.2


class SweepRecord:
    """Tells MLflow of a sweep."""

    def __init__(
        self, folder: Path, name: str, experiment: str, tracking: TrackingConfig, output_dir: str
    ) -> None:
        """Opens the record, or continues it.

        Args:
            folder: Of the sweep.
            name: Of the sweep, by which its trials find their parent.
            experiment: MLflow experiment of the trials.
            tracking: Where it is recorded; of it, only the store and its patience count.
            output_dir: Folder of the runs, where a local store lies.
        """
        self._journal = Journal(folder, limit_mb=tracking.journal_mb)
        self._patience_s = tracking.close_timeout_s
        location = resolve_store(tracking, output_dir)
        identity = read_identity(folder, location.uri)
        if identity is None:
            identity = new_identity(name, experiment, location, sweep=name)
            identity.save(self._journal.folder)
        self._delivery = Delivery(self._journal, identity, tracking.request_timeout_s)

    def begin(self, space: Mapping[str, str], note: str) -> None:
        """Tells what is searched; the parent is there afterwards, if the store is reached.

        Args:
            space: What the trials differ in, and how they are chosen.
            note: Description, in Markdown.
        """
        self._tell(
            {"kind": "begin"},
            {"kind": "params", "values": dict(space)},
            {"kind": "tags", "values": {NOTE_TAG: note}},
        )

    def result(
        self, metrics: Mapping[str, float], tags: Mapping[str, str], files: Sequence[Path]
    ) -> None:
        """Tells what has come out until now."""
        entries: list[Entry] = [{"kind": "tags", "values": dict(tags)}]
        if metrics:
            entries.append(metrics_entry(0, metrics))
        self._tell(*entries, *(artifact(path, None) for path in files))

    def end(self, status: str) -> None:
        """Tells that no process runs trials any more: FINISHED, FAILED or KILLED."""
        self._tell({"kind": "end", "status": status, "time_ms": now_ms()})

    def _tell(self, *entries: Entry) -> None:
        try:
            self._journal.extend(entries)
            self._deliver()
        except Exception as error:  # tracking never stops training
            reason = redact(str(error)).splitlines()[0] if str(error) else type(error).__name__
            log.warning(
                "MLflow does not know all of the sweep, which goes on; prefixworks runs sync %s"
                " tells the rest: %s",
                self._journal.run_dir,
                reason,
            )

    def _deliver(self) -> None:
        until = time.monotonic() + self._patience_s
        while True:
            try:
                self._delivery.deliver()
                return
            except RegistryError:
                # Another process of this sweep is at it.
                if time.monotonic() > until:
                    raise
                time.sleep(_PAUSE_S)
