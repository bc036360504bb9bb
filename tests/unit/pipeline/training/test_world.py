"""How the ranks of one machine find each other."""

from __future__ import annotations

import socket
from datetime import timedelta

import pytest
import torch.distributed as dist

from pipeline.training.world import meeting_place


def test_the_place_is_open_before_any_rank_comes_and_closed_after_the_run() -> None:
    with meeting_place() as place:
        address = (place["MASTER_ADDR"], int(place["MASTER_PORT"]))
        with socket.socket() as late, pytest.raises(OSError, match="in use"):
            late.bind(address)
        rank = dist.TCPStore(*address, is_master=False, timeout=timedelta(seconds=10))
        rank.set("hello", "0")
        assert rank.get("hello") == b"0"
        del rank
    with socket.socket() as probe:
        assert probe.connect_ex(address) != 0


def test_two_places_are_two() -> None:
    with meeting_place() as one, meeting_place() as other:
        assert one["MASTER_PORT"] != other["MASTER_PORT"]
