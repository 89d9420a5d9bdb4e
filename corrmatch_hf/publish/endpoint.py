"""The two files that let an Inference Endpoint run a published model."""

from __future__ import annotations

from pathlib import Path

REQUIREMENTS = ("torch>=2.6", "torchvision>=0.21", "timm>=1.0.20", "transformers>=5.17", "pillow>=11.0")


def endpoint_files() -> dict[str, bytes]:
    """Name -> contents of what lies beside the weights: `handler.py` and the packages it needs."""
    return {
        "handler.py": Path(__file__).with_name("handler.py").read_bytes(),
        "requirements.txt": "".join(f"{line}\n" for line in REQUIREMENTS).encode(),
    }


def write_endpoint(folder: str | Path) -> None:
    """Writes them into the folder of a saved model."""
    for name, contents in endpoint_files().items():
        Path(folder, name).write_bytes(contents)
