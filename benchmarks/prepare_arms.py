"""One arm of the preparation benchmark, as a program that does the whole job and ends.

    python benchmarks/prepare_arms.py ARM PICTURES OUTPUT WORKERS SIDE QUALITY SHARD_SIZE

img2dataset runs in an environment of its own, so nothing of ours is imported before the arm is
known.
"""

from __future__ import annotations

import os
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))


def main(argv: list[str]) -> None:
    """Run one arm."""
    arm, pictures, output, *numbers = argv
    workers, side, quality, shard_size = map(int, numbers)
    run = {"prefixworks": prefixworks, "img2dataset": img2dataset, "ray-data": ray_data}[arm]
    run(Path(pictures), Path(output), workers, side, quality, shard_size)


def prefixworks(
    pictures: Path, output: Path, workers: int, side: int, quality: int, shard_size: int
) -> None:
    """`prefixworks prepare` on a local Ray cluster."""
    from rich.console import Console

    from data_prep.config import DatasetConfig, ImagePolicy, PrepareConfig, SourceConfig
    from jobs.prepare import prepare

    source = SourceConfig(
        reader="coco_captions",
        images=str(pictures / "images"),
        annotations=str(pictures / "captions.json"),
    )
    config = PrepareConfig(
        output_dir=str(output),
        datasets={"pictures": DatasetConfig(sources=[source])},
        shard_size=shard_size,
        workers=workers,
        image=ImagePolicy(max_side=side, quality=quality),
    )
    prepare(config, Console())


def img2dataset(
    pictures: Path, output: Path, workers: int, side: int, quality: int, shard_size: int
) -> None:
    """img2dataset, reading local files by their URLs.

    Without looking for EXIF, and with few threads, which is faster where nothing is waited for.
    """
    from img2dataset import download  # type: ignore[import-not-found, unused-ignore]

    urls = output / "urls.txt"
    output.mkdir(parents=True)
    names = sorted((pictures / "images").iterdir())
    urls.write_text("".join(f"{path.absolute().as_uri()}\n" for path in names))
    download(
        url_list=str(urls),
        input_format="txt",
        output_folder=str(output / "shards"),
        output_format="webdataset",
        processes_count=workers,
        thread_count=4,
        image_size=side,
        resize_mode="keep_ratio_largest",
        resize_only_if_bigger=True,
        encode_quality=quality,
        number_sample_per_shard=shard_size,
        extract_exif=False,
        compute_hash="sha256",
    )


def ray_data(
    pictures: Path, output: Path, workers: int, side: int, quality: int, shard_size: int
) -> None:
    """Ray Data: read_images, a resizing map, write_webdataset."""
    import ray

    ray.init(address="local", num_cpus=workers, num_gpus=0, include_dashboard=False)

    def fit(row: dict[str, Any]) -> dict[str, Any]:
        from PIL import Image

        image = Image.fromarray(row["image"])
        scale = min(1.0, side / max(image.size))
        size = (round(image.width * scale), round(image.height * scale))
        sink = BytesIO()
        image.resize(size, Image.Resampling.BICUBIC).save(sink, "JPEG", quality=quality)
        key = Path(row["path"]).stem
        return {"__key__": key, "jpg": sink.getvalue(), "txt": f"Picture {key}."}

    data = ray.data.read_images(str(pictures / "images"), include_paths=True, mode="RGB")
    # The pictures are encoded already, at the quality that all arms have.
    data.map(fit).write_webdataset(str(output), encoder=None, min_rows_per_file=shard_size)
    ray.shutdown()


if __name__ == "__main__":
    for variable in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        os.environ.setdefault(variable, "0")
    main(sys.argv[1:])
