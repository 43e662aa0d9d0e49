"""CUDA source to machine code of one architecture, by NVRTC through `cuda-core`; kept in the user's cache.

Neither a GPU nor a driver nor nvcc is needed. Several processes may compile the same kernel at the same time: each
writes a file of its own and renames it.
"""

import contextlib
import functools
import hashlib
import importlib
import os
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from binarize.errors import NoKernelError
from binarize.kernels.cuda.specialise import SOURCES, Specialised

__all__ = ["architecture", "cache_folder", "compile_all", "compiled", "missing", "source_digest", "why_not_capability"]

_OLDEST = (7, 5)
_DIGEST_BYTES = 32
_INSTALL = "pip install 'binarize[cuda]'"


def missing() -> str | None:
    """Return why nothing can be compiled here, or None."""
    try:
        _toolchain()
    except ImportError as error:
        return f"needs cuda-core, which cannot be imported ({error}); {_INSTALL}"
    except Exception as error:  # each version of cuda-core reports a missing NVRTC by an error of its own
        return f"needs NVRTC, which cuda-core cannot load ({_first_line(error)}); {_INSTALL}"
    return None


def why_not_capability(capability: tuple[int, int]) -> str | None:
    """Return why no kernel is made for GPUs of that compute capability, or None."""
    if capability < _OLDEST:
        seen = ".".join(map(str, capability))
        return f"needs a GPU of compute capability 7.5 or newer, this one has {seen}"
    return None


def architecture(capability: tuple[int, int]) -> str:
    """Return what NVRTC calls GPUs of that compute capability; 9.0 with all that only it has."""
    name = "sm_{}{}".format(*capability)
    return "sm_90a" if name == "sm_90" else name


def cache_folder() -> Path:
    """Return where machine code is kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(home) / "binarize" / "cuda"


def compiled(kernel: Specialised, arch: str) -> bytes:
    """Return the machine code (a cubin) of a kernel, from the cache or compiled now.

    A damaged file of the cache is compiled anew; a cache that cannot be written is done without.

    Raises:
        NoKernelError: `cuda-core` is missing, or NVRTC refuses.
    """
    path = cache_folder() / f"{_key(kernel, arch)}.cubin"
    kept = _read(path)
    if kept is not None:
        return kept
    code = _compile(kernel, arch)
    with contextlib.suppress(OSError):
        _write(path, code)
    return code


def compile_all(kernels: Iterable[Specialised], arch: str, threads: int | None = None) -> None:
    """Fill the cache with many kernels, several at a time: NVRTC takes a second for a large one."""
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        list(pool.map(lambda kernel: compiled(kernel, arch), kernels))


def _compile(kernel: Specialised, arch: str) -> bytes:
    why = missing()
    if why is not None:
        raise NoKernelError(kernel.short, {"cuda": why})
    core, _ = _toolchain()
    options = core.ProgramOptions(
        name=kernel.name, arch=arch, std="c++17", fma=False, ftz=False, include_path=str(SOURCES)
    )
    try:
        code: bytes = core.Program(kernel.text(), "c++", options).compile("cubin").code
    except Exception as error:  # NVRTCError is not public in every version
        raise NoKernelError(kernel.short, {"cuda": f"NVRTC cannot compile it for {arch}: {_text(error)}"}) from error
    return bytes(code)


@functools.lru_cache(maxsize=1)
def _toolchain() -> tuple[Any, tuple[int, int]]:
    """Return cuda-core, and the version of the NVRTC that it found."""
    try:
        core = importlib.import_module("cuda.core")
        core.ProgramOptions  # noqa: B018  before 0.5 the names were elsewhere
    except (ImportError, AttributeError):
        core = importlib.import_module("cuda.core.experimental")
    status, major, minor = importlib.import_module("cuda.bindings.nvrtc").nvrtcVersion()
    if int(status):
        raise RuntimeError(f"nvrtcVersion gave {status}")
    return core, (major, minor)


@functools.lru_cache(maxsize=1)
def source_digest() -> str:
    """Return a text that changes with the CUDA sources."""
    texts = (path.read_bytes() for path in sorted(SOURCES.iterdir()))
    return hashlib.sha256(b"".join(hashlib.sha256(text).digest() for text in texts)).hexdigest()


def _key(kernel: Specialised, arch: str) -> str:
    version = str(_toolchain()[1]) if missing() is None else ""
    parts = (kernel.text().encode(), source_digest().encode(), arch.encode(), version.encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _read(path: Path) -> bytes | None:
    with contextlib.suppress(OSError):
        digest, code = (whole := path.read_bytes())[:_DIGEST_BYTES], whole[_DIGEST_BYTES:]
        if hashlib.sha256(code).digest() == digest:
            return code
    return None


def _write(path: Path, code: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, suffix=".draft")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(code).digest() + code)
        Path(draft).replace(path)
    except OSError:
        Path(draft).unlink(missing_ok=True)
        raise


def _text(error: Exception) -> str:
    return str(error).replace("\0", "").strip() or type(error).__name__


def _first_line(error: Exception) -> str:
    return _text(error).partition("\n")[0]
