"""Measure how many images per second `load_data` gives for training, by preset and by threads.

Usage: python benchmarks/loader.py --count 256 --threads 0 2 --batch 64
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

import binarize

SIDES = (500, 375)  # of a usual ImageNet photograph


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="an imagefolder of yours; made of noise under blur by default")
    parser.add_argument("--count", type=int, default=256, help="image files to make, or to use of --data")
    parser.add_argument("--threads", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(options.data or place)
        if options.data is None:
            make_files(folder, options.count)
        for threads in options.threads:
            report("imagenet", f"imagefolder:{folder}", (3, 224, 224), threads, options)
        np.savez(
            Path(place) / "small.npz", images=np.random.default_rng(0).integers(0, 256, (10000, 32, 32, 3), np.uint8)
        )
        for threads in options.threads:
            report("cifar", f"npz:{place}/small.npz", (3, 32, 32), threads, argparse.Namespace(batch=128, count=None))


def make_files(folder: Path, count: int) -> None:
    """Write JPEG files about as large as photographs of that size."""
    generator = np.random.default_rng(0)
    (folder / "class").mkdir()
    for index in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        coarse.resize(SIDES, Image.Resampling.BICUBIC).save(folder / "class" / f"{index:05}.jpg", quality=90)


def report(preset: str, spec: str, shape: tuple[int, ...], threads: int, options: argparse.Namespace) -> None:
    data = binarize.load_data(
        spec, input_shape=shape, batch_size=options.batch, limit=options.count, shuffle=True, augment=preset,
        workers=threads,
    )  # fmt: skip
    start = time.perf_counter()
    images = sum(len(batch) for batch, _ in data)
    speed = images / (time.perf_counter() - start)
    print(json.dumps({"preset": preset, "threads": threads, "images": images, "images_per_second": round(speed)}))


if __name__ == "__main__":
    main()
