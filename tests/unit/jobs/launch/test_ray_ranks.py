"""Ranks on a Ray cluster: what is reserved, which variables they get, what their ends mean."""

from __future__ import annotations

import pytest

from jobs.launch.ray.group import Group
from jobs.launch.ray.host import Place
from jobs.launch.ray.ranks import rank_environments
from jobs.launch.ray.watch import Ends
from pipeline.errors import EXIT_INTERRUPTED


def test_a_node_s_share_is_reserved_as_a_whole() -> None:
    group = Group(
        nodes=2,
        ranks_per_node=4,
        gpus_per_rank=1,
        cpus_per_rank=3,
        memory_bytes_per_rank=10,
        resources={"fast": 0.5},
    )
    assert group.bundles() == [{"CPU": 12, "GPU": 4, "memory": 40, "fast": 0.5}] * 2
    assert group.strategy == "STRICT_SPREAD"


def test_ranks_that_may_run_anywhere_are_reserved_one_by_one() -> None:
    group = Group(nodes=2, ranks_per_node=2, cpus_per_rank=3, placement="anywhere")
    assert group.bundles() == [{"CPU": 3}] * 4
    assert group.strategy == "PACK"


def test_ranks_number_the_devices_of_their_node() -> None:
    group = Group(nodes=2, ranks_per_node=2, gpus_per_rank=1)
    places = [
        Place(node="a", address="10.0.0.1", gpus=("2",)),
        Place(node="a", address="10.0.0.1", gpus=("0",)),
        Place(node="b", address="10.0.0.2", gpus=("1",)),
    ]
    found = rank_environments(group, places, 20_001)
    assert [each["RANK"] for each in found] == ["0", "1", "2"]
    assert [each["LOCAL_RANK"] for each in found] == ["0", "1", "0"]
    assert [each["LOCAL_WORLD_SIZE"] for each in found] == ["2", "2", "1"]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in found] == ["2,0", "2,0", "1"]
    assert {each["MASTER_ADDR"] for each in found} == {"10.0.0.1"}
    assert {each["MASTER_PORT"] for each in found} == {"20001"}
    assert not any("DS_ACCELERATOR" in each or "GLOO_SOCKET_IFNAME" in each for each in found)


@pytest.mark.parametrize(
    ("statuses", "lost", "asked", "status", "again"),
    [
        ({0: 0, 1: 0}, {}, False, 0, None),
        ({0: 0, 1: 0}, {}, True, 0, None),
        ({1: 2, 0: 1}, {}, False, 2, None),
        ({0: 1}, {1: "gone"}, False, 1, "rank 1 was lost (gone)"),
        ({1: -9, 0: 1}, {}, False, 1, "rank 1 was killed by SIGKILL"),
        ({0: 75, 1: 75}, {}, True, EXIT_INTERRUPTED, "asked to stop"),
        ({0: 75, 1: -15}, {}, True, EXIT_INTERRUPTED, "killed by SIGTERM"),
        ({0: 75}, {1: "gone"}, False, EXIT_INTERRUPTED, "rank 1 was lost"),
        ({0: -15, 1: -15}, {}, True, EXIT_INTERRUPTED, "killed by SIGTERM"),
    ],
)
def test_the_ends_of_ranks_decide_about_another_try(
    statuses: dict[int, int], lost: dict[int, str], asked: bool, status: int, again: str | None
) -> None:
    ends = Ends(statuses=statuses, lost=lost)
    assert ends.status(asked=asked) == status
    reason = ends.worth_another_try()
    assert (reason is None) == (again is None)
    assert again is None or again in (reason or "")
