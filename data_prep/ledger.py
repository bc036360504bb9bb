"""What a finished shard was made from and what it holds: one small file a shard.

Only preparation reads it. The entry gets its name after the shard and names the input that the
shard was made from, so a later run can tell a finished shard from one that has to be made again.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from data_prep.claim import LEDGER
from data_prep.errors import DataError
from data_prep.fields import canonical_json
from data_prep.files import file_state
from data_prep.manifest import ShardInfo
from data_prep.quarantine import Reason, Rejection
from data_prep.shards import IndexRow, shard_name, verify_shard

_DAMAGE = (OSError, ValueError, TypeError, KeyError, AttributeError)
"""What reading a missing, cut or edited entry can raise."""


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """What a finished shard was made from and what it holds.

    Attributes:
        digest: Names the input, as ShardTask does.
        shard: The shard's entry in the manifest.
        state: Time and size of the shard's file when it was written. As long as they stand, a run
            that continues trusts the file without reading it.
        rows: Its rows of the index.
        rejections: The records that did not become samples.
    """

    digest: str
    shard: ShardInfo
    state: str
    rows: tuple[IndexRow, ...]
    rejections: tuple[Rejection, ...]

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(
            {
                **vars(self),
                "shard": vars(self.shard),
                "rows": [vars(row) for row in self.rows],
                "rejections": [vars(rejection) for rejection in self.rejections],
            }
        )

    @classmethod
    def from_bytes(cls, content: bytes) -> "LedgerEntry":
        """Reads an entry; ValueError, TypeError or KeyError when it is damaged."""
        record = json.loads(content)
        return cls(
            digest=record["digest"],
            shard=ShardInfo(**record["shard"]),
            state=record["state"],
            rows=tuple(IndexRow(**row) for row in record["rows"]),
            rejections=tuple(
                Rejection(**{**row, "reason": Reason(row["reason"])})
                for row in record["rejections"]
            ),
        )


def ledger_path(folder: Path, number: int) -> Path:
    """Where the ledger entry of a shard lies."""
    return folder / LEDGER / f"{shard_name(number)}.json"


def entry_or_none(folder: Path, number: int) -> LedgerEntry | None:
    """The entry of a shard; None when it is missing or damaged, whose remedy is the same."""
    try:
        return LedgerEntry.from_bytes(ledger_path(folder, number).read_bytes())
    except _DAMAGE:
        return None


def read_entry(folder: Path, number: int) -> LedgerEntry:
    """The entry of a shard; DataError when it is missing or damaged."""
    path = ledger_path(folder, number)
    try:
        return LedgerEntry.from_bytes(path.read_bytes())
    except _DAMAGE as error:
        raise DataError(f"{path} is missing or damaged: {error}; run prepare again") from error


def stands(folder: Path, entry: LedgerEntry) -> bool:
    """Whether the shard's bytes are still those that the entry speaks of."""
    try:
        if file_state((folder / entry.shard.name).stat()) != entry.state:
            # Copied, restored or damaged: only its bytes can say.
            verify_shard(folder, entry.shard)
    except (OSError, DataError):
        return False
    return True
