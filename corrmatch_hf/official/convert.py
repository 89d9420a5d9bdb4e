"""Converts checkpoints of the authors of CorrMatch, UniMatch V1 and UniMatch V2 to models of this package, and back.

Such a checkpoint does not contain the class names nor, for CorrMatch and UniMatch V1, the output stride.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import torch

from ..errors import InputError
from ..model import CorrMatchConfig, CorrMatchForSegmentation
from . import deeplab, dpt
from .checkpoint_file import first, read_checkpoint, sha256
from .dpt import MAX_IMAGE_SIZE, PATCH

LAYOUTS = {"deeplabv3plus": deeplab, "dpt": dpt}  # by our name of the decoder
PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def official_decoder(path: str | Path, *, key: str | None = None) -> str:
    """The decoder that a checkpoint needs: "deeplabv3plus" (CorrMatch, UniMatch V1) or "dpt" (UniMatch V2).

    Raises:
        InputError: as `from_official`.
    """
    return _decoder(read_checkpoint(Path(path), key))


def from_official(
    path: str | Path,
    *,
    key: str | None = None,
    output_stride: int | None = None,
    image_size: int | None = None,
    id2label: Mapping[int, str] | None = None,
) -> CorrMatchForSegmentation:
    """The model of one of the authors' checkpoints, in eval mode; its weights are memory-mapped from the file.

    No code in the file is run. Everything but the weights is ignored, and their names may have the prefix "module." of
    data-parallel training. The file's name and SHA-256, and `key`, are recorded in the configuration, as
    `converted_from`.

    Args:
        path: a `.pth` file: the weights, or a dictionary that contains them.
        key: the name of the weights in that dictionary, if it contains several sets ("model", "model_ema": UniMatch
            V2's published results use the latter).
        output_stride: CorrMatch and UniMatch V1 only: the stride that the network was trained with; by default the
            published one, 8 with a correlation head (CorrMatch) and 16 without (UniMatch).
        image_size: UniMatch V2 only: the side of the square images that the position embeddings are made for, a
            multiple of 14; by default that of the checkpoint, 518. At this size logits equal the authors'; for other
            sizes timm interpolates the embeddings with another kernel. Cityscapes uses windows of 798 pixels.
        id2label: names of the classes 0 ... K-1; by default LABEL_0 and so on.

    Raises:
        InputError: no such file; a file that is corrupt or contains code; weights that do not fit the network, all
            named in one message, or are not finite; another number of classes than in `id2label`; an option of the
            other network.
    """
    path = Path(path)
    state = read_checkpoint(path, key)
    decoder = _decoder(state)
    layout = LAYOUTS[decoder]
    _check_tensors(state, layout, path)
    if decoder == "dpt" and output_stride not in (None, PATCH):
        raise InputError(
            f"output_stride is {output_stride}, but {path} contains a vision transformer, whose stride is its patch "
            f"size, {PATCH}: leave output_stride out."
        )
    if image_size is not None:
        if decoder != "dpt" or image_size not in range(PATCH, MAX_IMAGE_SIZE + 1, PATCH):
            raise InputError(
                f"image_size is {image_size}; it applies to checkpoints of {dpt.METHODS}, and must be a multiple of "
                f"{PATCH}, at most {MAX_IMAGE_SIZE}."
            )
        if dpt.POSITIONS in state:
            state[dpt.POSITIONS] = dpt.interpolate_positions(state[dpt.POSITIONS], image_size)
    model = _matching_model(state, layout, output_stride, path)
    spoilt = [
        name for name, value in state.items() if not layout.is_unused(name) and not value.isfinite().all()
    ]
    if spoilt:
        raise InputError(
            f"{path} contains NaN or infinite weights: {first(spoilt)}. Use an earlier checkpoint."
        )
    if id2label is not None:
        _name_classes(model.config, id2label, path)
    model.config.converted_from = {"file": path.name, "sha256": sha256(path)} | ({"key": key} if key else {})
    _load_official(model, state, layout)
    return model.eval()


def to_official(model: CorrMatchForSegmentation) -> dict[str, torch.Tensor]:
    """The model's weights under the authors' names, without copying them.

    The numbers of channels may differ from the authors', although their own code cannot load such weights. Unused
    weights of the authors' layout are zeros (in UniMatch V2 the mask token and a residual unit).

    Raises:
        InputError: the network differs from the authors' in more than its channels: in UniMatch V2, for example, by
            position embeddings for another image size than 518 pixels.
    """
    layout = LAYOUTS.get(model.config.decoder_type)
    found = [f"a {model.config.decoder_type} decoder"] if layout is None else layout.differences(model)
    if layout is None or found:
        raise InputError(
            f"This network cannot be saved as a checkpoint of the authors: it has {' and '.join(found)}."
        )
    return _official_names(model, layout)


def save_official(model: CorrMatchForSegmentation, path: str | Path, *, data_parallel: bool = False) -> None:
    """Write the model's weights as a checkpoint in the authors' layout.

    That is `{"model": weights}` for UniMatch's networks; for CorrMatch's, which have a correlation head, the weights
    alone, as CorrMatch's scripts for evaluation and pictures load them.

    Args:
        model: see `to_official`.
        path: file to write.
        data_parallel: add the prefix "module." to each name, as data-parallel training does.

    Raises:
        InputError: see `to_official`.
    """
    state = {"module." * data_parallel + name: value for name, value in to_official(model).items()}
    torch.save(state if model.correlation is not None else {"model": state}, path)


def _decoder(state: Mapping[str, torch.Tensor]) -> str:
    return "dpt" if dpt.recognises(state) else "deeplabv3plus"


def _check_tensors(state: Mapping[str, torch.Tensor], layout: ModuleType, path: Path) -> None:
    """Raises InputError for tensors in use that are not dense floating-point numbers."""
    odd = [
        name
        for name, value in state.items()
        if (value.dtype not in PRECISIONS or value.layout is not torch.strided) and not layout.is_unused(name)
    ]
    if odd:
        raise InputError(f"{path} contains non-float or sparse weights: {first(odd)}.")


def _matching_model(
    state: Mapping[str, torch.Tensor], layout: ModuleType, output_stride: int | None, path: Path
) -> CorrMatchForSegmentation:
    """The network, without contents, that every weight of `state` fits.

    Raises:
        InputError: there is none.
    """
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    arguments = layout.config_arguments(shapes, path)
    if output_stride:
        arguments["output_stride"] = output_stride
    try:
        with torch.device("meta"):
            model = CorrMatchForSegmentation(CorrMatchConfig(**arguments))
    except ValueError as error:  # widths or a number of classes outside the configuration's bounds
        raise InputError(f"{path} is not a checkpoint of {layout.METHODS}: {error}") from error

    expected = {name: tuple(value.shape) for name, value in _official_names(model, layout).items()}
    missing = [name for name in expected if name not in shapes and not layout.is_unused(name)]
    unexpected = [name for name in shapes if name not in expected]
    misshapen = [
        f"{name} {shapes[name]} instead of {shape}"
        for name, shape in expected.items()
        if shapes.get(name, shape) != shape
    ]
    problems = (("missing", missing), ("unexpected", unexpected), ("of a wrong shape", misshapen))
    if found := [f"{what}: {first(names)}" for what, names in problems if names]:
        raise InputError(
            f"{path} does not fit the authors' network with encoder {model.config.encoder_name}; {'; '.join(found)}."
        )
    return model


def _name_classes(config: CorrMatchConfig, id2label: Mapping[int, str], path: Path) -> None:
    if sorted(id2label) != list(range(config.num_labels)):
        raise InputError(
            f"{path} has {config.num_labels} classes, so {config.num_labels} names are needed, for the ids 0 to "
            f"{config.num_labels - 1}; given are {len(id2label)}: {first(id2label.values())}."
        )
    config.id2label = {i: id2label[i] for i in range(config.num_labels)}
    config.label2id = {name: i for i, name in config.id2label.items()}


def _load_official(
    model: CorrMatchForSegmentation, state: Mapping[str, torch.Tensor], layout: ModuleType
) -> None:
    """Assign the authors' weights to the model, all in the widest of their precisions, so that nothing is lost."""
    floats = {value.dtype for value in state.values()}.intersection(PRECISIONS)
    dtype = functools.reduce(torch.promote_types, floats)
    unused = layout.unused_weights(model)
    renamed = {
        _rename(name, layout.PREFIXES): value.to(dtype) if value.is_floating_point() else value
        for name, value in state.items()
        if name not in unused
    }
    # BatchNorm's counters, which old checkpoints lack
    renamed |= {name: torch.tensor(0) for name in model.state_dict().keys() - renamed.keys()}
    model.load_state_dict(renamed, assign=True)


def _official_names(model: CorrMatchForSegmentation, layout: ModuleType) -> dict[str, torch.Tensor]:
    """The model's weights, and zeros for unused ones, under the authors' names."""
    ours = {our: theirs for theirs, our in layout.PREFIXES.items()}
    weights = {_rename(name, ours): value for name, value in model.state_dict().items()}
    return weights | layout.unused_weights(model)


def _rename(name: str, prefixes: Mapping[str, str]) -> str:
    prefix = next(prefix for prefix in prefixes if name.startswith(prefix))
    return prefixes[prefix] + name.removeprefix(prefix)
