"""Run an exported network with numpy and onnxruntime alone, by our kernels and by the standard bodies; no torch.

Usage: binarize export NET.safetensors -o net.onnx
       python examples/onnxruntime_only.py net.onnx [--data FILE.npz --mean 0.49,0.48,0.45 --std 0.25,0.24,0.26]

Where this package is not installed, copy its library beside your program and name it with --library.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import onnxruntime


def library_of(path: str | None) -> str:
    if path is not None:
        return path
    import binarize  # looks the path up, and imports neither torch nor anything else that is heavy

    return binarize.onnxruntime_library()


def open_session(net: Path, library: str | None, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if library is not None:
        options.register_custom_ops_library(library)
    try:
        return onnxruntime.InferenceSession(str(net), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a class of its own for each kind of failure
        raise SystemExit(f"cannot open {net}: {str(error).strip().splitlines()[0]}") from None


def images_of(file: Path, mean: list[float], std: list[float], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, c, h, w) and labels (n,) of a file with the arrays `images`, uint8 NHWC, and `labels`."""
    with np.load(file) as arrays:
        images, labels = arrays["images"][:count], arrays["labels"][:count]
    images = (images.astype(np.float32) / 255 - np.float32(mean)) / np.float32(std)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels


def noise(session: onnxruntime.InferenceSession, count: int) -> np.ndarray:
    sizes = [size if isinstance(size, int) else 224 for size in session.get_inputs()[0].shape[1:]]
    return np.random.default_rng(0).standard_normal((count, *sizes), dtype=np.float32)


def run(session: onnxruntime.InferenceSession, images: np.ndarray, batch: int) -> np.ndarray:
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: images[at : at + batch]})[0] for at in range(0, len(images), batch)]
    return np.concatenate(parts)


def milliseconds(session: onnxruntime.InferenceSession, images: np.ndarray, turns: int) -> float:
    """Return the median time of one image."""
    taken = []
    for _ in range(turns):
        begun = time.perf_counter()
        run(session, images[:1], 1)
        taken.append(time.perf_counter() - begun)
    return 1e3 * float(np.median(taken))


def main(words: list[str] | None = None) -> None:
    numbers = lambda text: [float(number) for number in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("net", type=Path, help="what `binarize export` wrote")
    parser.add_argument("--library", help="libbinarize_onnxruntime.so; that of the installed package by default")
    parser.add_argument("--data", type=Path, help="npz file; noise by default")
    parser.add_argument("--mean", type=numbers, default=[0.0])
    parser.add_argument("--std", type=numbers, default=[1.0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="few images and turns")
    given = parser.parse_args(words)
    count, turns = (8, 3) if given.tiny else (1000, 50)

    if not given.net.is_file():
        raise SystemExit(f"cannot run {given.net}: there is no such file")
    ours = open_session(given.net, library_of(given.library), given.threads)
    bodies = open_session(given.net, None, given.threads)
    labels = None
    if given.data is None:
        images = noise(ours, count if given.tiny else 32)
    else:
        images, labels = images_of(given.data, given.mean, given.std, count)

    found = {"our library": run(ours, images, 50), "bodies": run(bodies, images, 50)}
    for (name, outputs), session in zip(found.items(), (ours, bodies), strict=True):
        right = "" if labels is None else f", {np.mean(outputs.argmax(1) == labels):.2%} right"
        print(f"{name}: {milliseconds(session, images, turns):.2f} ms an image{right}")
    same = found["our library"].argmax(1) == found["bodies"].argmax(1)
    print(f"{np.mean(same):.2%} of {len(images)} images decided alike")


if __name__ == "__main__":
    main()
