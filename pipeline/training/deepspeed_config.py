"""The DeepSpeed dictionary of a run: derived from RunConfig, never written by hand."""

from __future__ import annotations

from typing import Any

from pipeline.config import RunConfig

_LARGEST_BUCKET = 50_000_000


def deepspeed_config(
    config: RunConfig, *, ranks: int, trainable: int, pinned: bool = False
) -> dict[str, Any]:
    """Derives what deepspeed.initialize takes as its config.

    Precision is not in it: bf16 is torch's autocast inside the module, over float32 parameters,
    which on a CPU is the faster of the two and keeps gradients and optimizer states in float32.

    Args:
        config: The run.
        ranks: Number of ranks.
        trainable: Number of trained values; buckets are not made larger than all of them.
        pinned: Whether what is offloaded lies in page-locked memory, which a GPU copies faster.
    """
    per_rank, accumulation = (
        config.training.batch_size_per_rank,
        config.training.gradient_accumulation,
    )
    bucket = max(1, min(_LARGEST_BUCKET, trainable))
    zero: dict[str, Any] = {
        "stage": config.engine.zero_stage,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "contiguous_gradients": config.engine.zero_stage >= 2,
        "overlap_comm": False,
    }
    if config.engine.zero_stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": bucket,
            "stage3_param_persistence_threshold": 0,
            # A layer that will be used again soon would else stay whole, and so the whole base.
            "stage3_max_reuse_distance": 0,
            "stage3_max_live_parameters": bucket,
            "stage3_gather_16bit_weights_on_model_save": False,
        }
    for part, place in (
        ("offload_optimizer", config.engine.offload_optimizer),
        ("offload_param", config.engine.offload_parameters),
    ):
        if place != "none":
            zero[part] = {"device": place, "pin_memory": pinned}
    return {
        "train_batch_size": per_rank * accumulation * ranks,
        "train_micro_batch_size_per_gpu": per_rank,
        "gradient_accumulation_steps": accumulation,
        # Several prompts are clipped one by one, by their own optimizer.
        "gradient_clipping": 0.0 if config.prompt_names() else config.optimizer.clip_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**62,
        "wall_clock_breakdown": False,
        "checkpoint": {"tag_validation": "Ignore"},
    }
