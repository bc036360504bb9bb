"""All that the model of scale takes for granted, each number with where it comes from.

"Data sheet" means NVIDIA's of the A100 SXM. "Chosen" is a round number that nothing here measured:
change it and look what moves. Nothing was measured on an accelerator.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Self


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """One run on one cluster. Bandwidths are in GB/s, 10^9 bytes a second, times in seconds."""

    # What is trained: jobs/recipes/train_ofa_large_refcoco.yaml.
    arch: str = "large"
    """Size of the base, as the other benchmarks name it."""
    method: Literal["prefix", "adapter", "bitfit", "finetune"] = "prefix"
    prompt_length: int = 100
    image_size: int = 480
    zero_stage: Literal[0, 1, 2, 3] = 1
    global_batch: int = 1024
    """Samples of a step; 0 gives every GPU one micro-batch instead, so that a step grows."""
    micro_batch: int = 16
    """Most samples that a GPU takes at once."""
    dataset_samples: int = 120_000
    """RefCOCO's training split has about as many expressions."""
    steps: int = 11_700
    """About 100 epochs."""

    # One GPU.
    peak_tflops: float = 312.0
    """Data sheet: bfloat16, dense."""
    utilisation: float = 0.35
    """Share of the peak that a large batch reaches. Chosen; on a CPU in float32 it is 0.86."""
    micro_batch_overhead_s: float = 0.03
    """What a micro-batch takes beside its arithmetic, whatever its size: launching several
    thousand small kernels. Chosen."""
    jitter: float = 0.03
    """Standard deviation of the logarithm of a rank's time for a step: lengths of texts, clocks,
    the system. Chosen."""
    slow_nodes: float = 0.0
    """Share of the nodes, at least one when above 0, that are slower all the time."""
    slow_factor: float = 1.15
    """How many times as long these take."""

    # Between GPUs.
    gpus_per_node: int = 8
    node_link_gb_per_s: float = 240.0
    """Data sheet: 300 in each direction; 80% of it."""
    node_link_latency_s: float = 3e-6
    """Of one hop. Chosen."""
    network_gb_per_s: float = 20.0
    """Of a node's port, one for each GPU, all used at once: InfiniBand HDR's 200 Gbit/s, 80%."""
    network_latency_s: float = 15e-6
    """Of one hop between nodes, with the library's work. Chosen."""
    collective_launch_s: float = 40e-6
    """What starting a collective and waiting for its result takes on each rank. Chosen."""

    # Data.
    sample_bytes: int = 150_000
    """A JPEG of 640 x 480 pixels as the other benchmarks draw them."""
    shard_samples: int = 1000
    workers_per_gpu: int = 6
    samples_per_s_per_worker: float = 75.0
    """Reading, checking, decoding to 480 pixels, tokenizing. Chosen; `benchmarks/loader.py` tells
    what a machine does."""
    prefetch_steps: int = 3
    store_gb_per_s: float = 10.0
    """What the store gives to all nodes together. Chosen; 0 for data on every node's own disk."""
    store_stream_gb_per_s: float = 0.08
    """What it gives to one request. Chosen."""
    fetches_per_node: int = 16
    """Shards that a node fetches at a time: as many as it reads streams, in batches of 1,024 on 64
    nodes."""
    cached: bool = True
    """Nodes keep the shards that they have fetched (`data.cache_gb` large enough)."""

    # What happens beside the steps.
    save_every_steps: int = 250
    host_copy_gb_per_s: float = 10.0
    """From a GPU to its host. Chosen."""
    disk_gb_per_s: float = 1.0
    """Where checkpoints go, writing as well as reading again. Chosen."""
    async_checkpoints: bool = True
    validate_every_steps: int = 500
    validation_samples: int = 1024
    validation_batch: int = 16
    search_s: float = 0.5
    """Searching answers for one batch, bound by its many small kernels. Chosen."""
    log_every_steps: int = 10
    report_s: float = 0.001
    """What the leading rank works on a report before its queue has it. Chosen."""
    start_s: float = 90.0
    """From the scheduler's decision to the first line of a rank's work on its base: container,
    imports, process group. Chosen."""
    fingerprint_gb_per_s: float = 1.0
    """SHA-256 of the base by every rank, before and after the run. Chosen."""

    # What breaks.
    mtbf_gpu_hours: float = 50_000.0
    """GPU-hours between two failures: 419 in 54 days of 16,384 GPUs (arXiv 2407.21783) are one in
    50,700. 0 for none."""
    detect_s: float = 30.0
    """From a failure to the end of the last rank: docs/how-to/broken-runs.md."""
    seed: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{field.name}: {value} is not a finite number")
            if isinstance(value, int | float) and value < 0:
                raise ValueError(f"{field.name}: {value} is below 0")
        for name in (
            *("micro_batch", "dataset_samples", "steps", "peak_tflops", "utilisation"),
            *("gpus_per_node", "node_link_gb_per_s", "network_gb_per_s", "sample_bytes"),
            *("shard_samples", "workers_per_gpu", "samples_per_s_per_worker", "prefetch_steps"),
            *("fetches_per_node", "store_stream_gb_per_s", "save_every_steps"),
            *("host_copy_gb_per_s", "disk_gb_per_s"),
            *("validate_every_steps", "validation_batch", "log_every_steps", "slow_factor"),
            *("fingerprint_gb_per_s", "prompt_length", "image_size"),
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: {getattr(self, name)} is not above 0")

    def changed(self, changes: Iterable[str]) -> Self:
        """These assumptions with some of them set as `name=value`.

        Raises:
            ValueError: there is no such assumption, or it cannot have such a value.
        """
        values: dict[str, Any] = {}
        known = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for change in changes:
            name, _, text = change.partition("=")
            if name not in known:
                raise ValueError(f"no assumption {name!r}; there are: {', '.join(known)}")
            values[name] = _parsed(name, text, known[name])
        return dataclasses.replace(self, **values)


_CHOICES: dict[str, tuple[str, ...]] = {
    "method": ("prefix", "adapter", "bitfit", "finetune"),
    "arch": ("micro", "tiny", "medium", "base", "large", "huge"),
    "zero_stage": ("0", "1", "2", "3"),
    "cached": ("true", "false"),
    "async_checkpoints": ("true", "false"),
}


def _parsed(name: str, text: str, before: object) -> object:
    """A value of the kind that stands there now."""
    if name in _CHOICES and text not in _CHOICES[name]:
        raise ValueError(f"{name}: {text!r} is none of {', '.join(_CHOICES[name])}")
    try:
        if isinstance(before, bool):
            return text == "true"
        return type(before)(text)  # type: ignore[call-arg]
    except ValueError:
        kind = "a whole number" if isinstance(before, int) else "a number"
        raise ValueError(f"{name}: {text!r} is not {kind}") from None
