"""The files of ONNX Runtime Web, which runs ONNX models in browsers: from npm's registry, once, or from a folder."""

from __future__ import annotations

import base64
import hashlib
import os
import tarfile
import tempfile
import urllib.request
from io import BytesIO
from pathlib import Path

from huggingface_hub import constants

from ...errors import InputError

VERSION = "1.30.0"
# npm's own checksum of this version (dist.integrity), so that a mirror can serve it, too.
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
REGISTRY = "https://registry.npmjs.org"  # the variable npm_config_registry names another
FILES = (
    "ort.wasm.min.mjs",  # computes on the CPU
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.mjs",  # on the GPU, too
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
MOST = 2**27  # bytes of a download; the package has 33 million
SECONDS = 60  # without an answer


def find_runtime(folder: str | Path | None = None) -> list[Path]:
    """Paths of `FILES` in `folder`, or in its `dist` or `package/dist`; by default in the cache, after a download.

    Raises:
        InputError: the folder lacks a file, or the download fails.
    """
    if folder is not None:
        for place in (Path(folder), Path(folder, "dist"), Path(folder, "package", "dist")):
            if all((place / name).is_file() for name in FILES):
                return [place / name for name in FILES]
        raise InputError(
            f"--runtime {folder} does not contain {', '.join(FILES)}: name the unpacked npm package onnxruntime-web "
            f"{VERSION} (npm pack onnxruntime-web@{VERSION}, then tar xf)."
        )
    cache = Path(constants.HF_HOME) / "corrmatch_hf" / f"onnxruntime-web-{VERSION}"
    if not all((cache / name).is_file() for name in FILES):
        _download(cache)
    return [cache / name for name in FILES]


def _download(cache: Path) -> None:
    registry = os.environ.get("npm_config_registry") or REGISTRY  # noqa: SIM112  (npm's own spelling)
    address = f"{registry.rstrip('/')}/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
    print(f"downloading ONNX Runtime Web {VERSION}, 33 MB, once")
    remedy = (
        f"unpack that file where there is a network (npm pack onnxruntime-web@{VERSION}, then tar xf), and name the "
        "folder with --runtime."
    )
    try:
        with urllib.request.urlopen(address, timeout=SECONDS) as answer:
            content = answer.read(MOST)
    except (OSError, ValueError) as error:  # ValueError: the registry is no address
        reason = getattr(error, "reason", None) or error
        raise InputError(f"{address} could not be downloaded ({reason}): {remedy}") from error
    if checksum(content) != SHA512:
        raise InputError(f"{address} is not the file that was expected (its SHA-512 differs): {remedy}")
    cache.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=cache.parent) as aside,
        tarfile.open(fileobj=BytesIO(content), mode="r:gz") as package,
    ):
        for name in FILES:
            Path(aside, name).write_bytes(package.extractfile(f"package/dist/{name}").read())
        cache.mkdir(exist_ok=True)
        for name in FILES:  # each is complete before it has its name
            Path(aside, name).replace(cache / name)


def checksum(content: bytes) -> str:
    """As npm writes it."""
    return base64.b64encode(hashlib.sha512(content).digest()).decode()
