"""Group: the ranks of a run, and what a Ray cluster has to keep free for them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Group:
    """Ranks as a cluster is asked for them."""

    nodes: int = 1
    """Machines."""
    ranks_per_node: int = 1
    """Processes on each."""
    gpus_per_rank: int = 0
    """0 or 1."""
    cpus_per_rank: int = 1
    """CPU cores of each rank."""
    memory_bytes_per_rank: int | None = None
    """Memory that is reserved for each rank."""
    resources: dict[str, float] = field(default_factory=dict)
    """Custom resources of each reservation."""
    placement: str = "nodes"
    """`nodes` reserves each machine's share as a whole, `anywhere` each rank's by itself."""
    max_restarts: int = 0
    """How often lost ranks are started again."""
    save_s: float = 300
    """Seconds that ranks have to save and stop once they were asked."""
    logs: str | None = None
    """Folder for a log of each rank; without it, or on a node that does not see it, the ranks talk
    into the log of the job."""

    @property
    def ranks(self) -> int:
        """Processes on all machines."""
        return self.nodes * self.ranks_per_node

    @property
    def ranks_per_bundle(self) -> int:
        """Ranks that are reserved together."""
        return self.ranks_per_node if self.placement == "nodes" else 1

    def bundles(self) -> list[dict[str, float]]:
        """What is reserved, in Ray's terms."""
        together = self.ranks_per_bundle
        bundle: dict[str, float] = {"CPU": self.cpus_per_rank * together, **self.resources}
        if self.gpus_per_rank:
            bundle["GPU"] = self.gpus_per_rank * together
        if self.memory_bytes_per_rank is not None:
            bundle["memory"] = self.memory_bytes_per_rank * together
        return [dict(bundle) for _ in range(self.ranks // together)]

    @property
    def strategy(self) -> str:
        """Ray's word for how the reservations lie to each other."""
        return "STRICT_SPREAD" if self.placement == "nodes" else "PACK"
