"""Pretrained weights for an encoder: timm's own from the Hub, or a file; complete, or an error that says what
is not."""

import zipfile
from collections.abc import Iterable
from pathlib import Path

import timm
import torch
from timm.models import load_state_dict

from .encoder_plan_corrmatch import build

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
MODERATE = 2**30  # bytes that any file may take in memory, however small it is


def pretrained_encoder_weights(options: dict, weights: str | Path | None = None) -> dict[str, torch.Tensor]:
    """The state dict of the timm feature encoder that `options` make, with pretrained weights.

    timm renames and reshapes what files hold (nested modules, other image sizes, older layouts), so the
    weights go through its own loading.

    Args:
        options: arguments of `timm.create_model`.
        weights: a .safetensors, .pth, .pt or .bin file with the weights of the whole timm model, whose
            classifier is ignored; `None` downloads those of the model's pretrained tag through the Hub.

    Raises:
        ValueError: no such weights; a file that cannot be read safely; weights missing or of another shape.
    """
    name = options["model_name"]
    if weights is None:
        try:
            return build(options, pretrained=True).state_dict()
        except RuntimeError as error:
            known = ", ".join(timm.list_pretrained(name.split(".")[0] + ".*")) or "none"
            raise ValueError(
                f"timm has no pretrained weights for {name!r} (it has: {known}): {error}"
            ) from error
        except OSError as error:  # no network and nothing in the cache, no such repository, a wrong token
            reason = " ".join(str(error).split()).rstrip(".")
            raise ValueError(
                f"The pretrained weights of encoder {name!r} could not be had from the Hub: {reason}. Try again with a "
                "connection, name a file of weights instead, or start from random ones."
            ) from error

    state = _read(Path(weights))
    loaded = _load(options, state, weights)
    # timm does not say which weights it did not find. The same file full of NaN does: what is not NaN after
    # loading is not in the file. (Integers are counters and tables that the model makes itself.)
    probe = _load(options, {k: torch.full_like(v, torch.nan) for k, v in state.items()}, weights)
    missing = [key for key, value in probe.items() if value.is_floating_point() and not value.isnan().all()]
    if missing:
        shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
        raise ValueError(
            f"{weights} lacks weights of encoder {name!r}: {shown}. Is it a checkpoint of that model?"
        )
    return loaded


def weights_origin(name: str, weights: str | Path | None = None) -> str | None:
    """Where such weights come from: the Hub id of timm's, as "timm/resnet50.a1_in1k", or the name of the file."""
    if weights is not None:
        return Path(weights).name
    pretrained = timm.get_pretrained_cfg(name)
    return pretrained.hf_hub_id if pretrained is not None else None


def _read(path: Path) -> dict[str, torch.Tensor]:
    """The floating-point tensors of a checkpoint file; never runs code from it."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"Encoder weights must be a {', '.join(SUFFIXES)} file, not {path}.")
    if not path.is_file():
        raise ValueError(f"There is no file {path} with encoder weights.")
    if inflated := inflation(path):
        raise ValueError(f"{path} is refused, for {inflated}.")
    try:
        state = load_state_dict(str(path), device="cpu", weights_only=True)
    except Exception as error:  # a broken or hostile file can raise anything
        raise ValueError(
            f"{path} cannot be read as plain weights ({type(error).__name__}): it is damaged, or holds more "
            "than tensors. Save its state dict as .safetensors where you trust it."
        ) from error
    state = {k: v for k, v in state.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
    if not state:
        raise ValueError(f"{path} holds no weights.")
    if inflated := inflation(path, state.values()):
        raise ValueError(f"{path} is refused, for {inflated}.")
    return state


def inflation(path: Path, tensors: Iterable[torch.Tensor] = ()) -> str | None:
    """What of a file of weights would take much more memory than it has bytes; `None` where nothing would.

    An archive can be compressed, which torch reads and never writes: gigabytes of zeros in a megabyte. A tensor can be
    one number a million times, or sparse.
    """
    size = path.stat().st_size
    allowed = max(2 * size, MODERATE)  # twice, for weights that a model uses in two places
    unpacked = 0
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(each.file_size for each in archive.infolist())
        except Exception:  # zipfile raises many kinds
            return "its archive is damaged"
    unpacked = max(unpacked, sum(each.numel() * each.element_size() for each in tensors if not each.is_meta))
    return f"its {size:,} bytes stand for {unpacked:,} in memory" if unpacked > allowed else None


def _load(options: dict, state: dict[str, torch.Tensor], weights: str | Path) -> dict[str, torch.Tensor]:
    """Pass a state dict through timm's loading."""
    # Where the model was published with another number of classes than the encoder's none, timm drops a classifier that
    # the file may have; where with none, as most self-supervised ones, it would stumble over one.
    overlay = {"state_dict": state, "custom_load": False, "num_classes": 1}
    try:
        encoder = build(options, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:  # timm's renaming meets names it does not expect
        reason = " ".join(str(error).split())  # torch lists wrong shapes on lines of their own
        raise ValueError(f"{weights} does not fit encoder {options['model_name']!r}: {reason}") from error
    return encoder.state_dict()
