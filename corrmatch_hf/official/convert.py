"""The authors' checkpoints, `.pth` files of CorrMatch, UniMatch V1 and UniMatch V2: to models of this package and back.

What the weights do not tell is how the classes are called, and for CorrMatch and UniMatch V1 the output stride.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import torch

from ..errors import InputError
from ..model import CorrMatchConfig, CorrMatchForSegmentation
from . import deeplab as official_deeplab
from . import dpt as official_dpt
from .checkpoint_file import read_checkpoint, sha256, some
from .dpt import MAX_IMAGE_SIZE, PATCH

LAYOUTS = {"deeplabv3plus": official_deeplab, "dpt": official_dpt}  # by our name of the decoder
PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def official_decoder(path: str | Path, *, key: str | None = None) -> str:
    """The decoder of a checkpoint: "deeplabv3plus" (CorrMatch, UniMatch V1) or "dpt" (UniMatch V2).

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
    """The model of one of the authors' checkpoints, in eval mode; its weights stay in the file until they are used.

    Runs no code of the file. Whatever lies beside the weights is left alone, and names may begin with the
    "module." of data-parallel training. The file's name and SHA-256, and `key`, go into the configuration, as
    `converted_from`.

    Args:
        path: a `.pth` file: the weights, or a dictionary that holds them.
        key: the name of the weights in that dictionary, where it holds several ("model", "model_ema": UniMatch V2's
            published figures are the latter's).
        output_stride: of CorrMatch and UniMatch V1, the one that the network was trained with; by default the
            published one, 8 with a correlation head (CorrMatch) and 16 without (UniMatch).
        image_size: of UniMatch V2, the side of the square images of which the position embeddings are to be, a multiple
            of 14; by default that of the checkpoint, 518. At this size logits equal the authors'; for others timm
            interpolates the embeddings, by another kernel. Cityscapes' windows have 798 pixels.
        id2label: names of the classes 0 ... K-1; by default LABEL_0 and so on.

    Raises:
        InputError: no such file; one that is damaged or holds code; weights that are not this network's, all of
            them named; another number of classes than `id2label` names; an option that the network has not.
    """
    path = Path(path)
    state = read_checkpoint(path, key)
    decoder = _decoder(state)
    layout = LAYOUTS[decoder]
    odd = [
        name
        for name, value in state.items()
        if (value.dtype not in PRECISIONS or value.layout is not torch.strided) and not layout.left_over(name)
    ]
    if odd:
        raise InputError(f"{path} holds weights that are no plain floating-point numbers: {some(odd)}.")
    if decoder == "dpt" and output_stride not in (None, PATCH):
        raise InputError(
            f"output_stride is {output_stride}, but {path} is of a vision transformer, whose stride is the side of its "
            f"patches, {PATCH}: leave it out."
        )
    if image_size is not None:
        if decoder != "dpt" or image_size not in range(PATCH, MAX_IMAGE_SIZE + 1, PATCH):
            raise InputError(
                f"image_size is {image_size}; it is for checkpoints of {official_dpt.METHODS}, and a multiple of "
                f"{PATCH}, at most {MAX_IMAGE_SIZE}."
            )
        if (name := official_dpt.POSITIONS) in state:
            state[name] = official_dpt.at_image_size(state[name], image_size)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    network = layout.network(shapes, path)
    try:
        config = CorrMatchConfig(**network | ({"output_stride": output_stride} if output_stride else {}))
        model = _on_meta(config)
    except ValueError as error:  # widths and numbers of classes beyond what it takes
        raise InputError(f"{path} is no checkpoint of {layout.METHODS}: {error}") from error
    _check_fit(shapes, model, layout, path)

    num_labels = model.config.num_labels
    if id2label is not None:
        if sorted(id2label) != list(range(num_labels)):
            raise InputError(
                f"{path} tells {num_labels} classes apart, so {num_labels} names are needed, for the ids 0 to "
                f"{num_labels - 1}; given are {len(id2label)}: {some(id2label.values())}."
            )
        model.config.id2label = {i: id2label[i] for i in range(num_labels)}
        model.config.label2id = {name: i for i, name in model.config.id2label.items()}
    model.config.converted_from = {"file": path.name, "sha256": sha256(path)} | ({"key": key} if key else {})

    # One precision for all: the widest there is, so that nothing is lost.
    floats = {value.dtype for value in state.values()}.intersection(PRECISIONS)
    dtype = functools.reduce(torch.promote_types, floats)
    unused = layout.fillers(model)
    renamed = {
        _renamed(name, layout.PREFIXES): value.to(dtype) if value.is_floating_point() else value
        for name, value in state.items()
        if name not in unused
    }
    # BatchNorm's counters, which old checkpoints lack
    renamed |= {name: torch.tensor(0) for name in model.state_dict().keys() - renamed.keys()}
    model.load_state_dict(renamed, assign=True)
    return model.eval()


def to_official(model: CorrMatchForSegmentation) -> dict[str, torch.Tensor]:
    """The model's weights under the authors' names, without copying them.

    Channels may be other than the authors', which their own code cannot load. Weights of theirs that nothing depends on
    are zeros (of UniMatch V2 the mask token and a residual unit).

    Raises:
        InputError: the network differs from the authors' in more than its channels, as UniMatch V2's does with position
            embeddings of another size than 518 pixels.
    """
    layout = LAYOUTS.get(model.config.decoder)
    misfits = [f"a {model.config.decoder} decoder"] if layout is None else layout.misfits(model)
    if misfits:
        raise InputError(
            f"The authors' layout has no place for this network: it has {' and '.join(misfits)}."
        )
    return _theirs(model, layout)


def save_official(model: CorrMatchForSegmentation, path: str | Path, *, data_parallel: bool = False) -> None:
    """Write the model's weights as a checkpoint of the authors, `{"model": weights}`.

    Args:
        model: see `to_official`.
        path: file to write.
        data_parallel: begin each name with "module.", as data-parallel training does.

    Raises:
        InputError: the network is not the authors'.
    """
    state = to_official(model)
    torch.save({"model": {"module." * data_parallel + name: value for name, value in state.items()}}, path)


def _decoder(state: Mapping[str, torch.Tensor]) -> str:
    return "dpt" if official_dpt.recognises(state) else "deeplabv3plus"


def _theirs(model: CorrMatchForSegmentation, layout: ModuleType) -> dict[str, torch.Tensor]:
    ours = {our: theirs for theirs, our in layout.PREFIXES.items()}
    return {_renamed(name, ours): value for name, value in model.state_dict().items()} | layout.fillers(model)


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    prefix = next(prefix for prefix in prefixes if name.startswith(prefix))
    return prefixes[prefix] + name.removeprefix(prefix)


def _on_meta(config: CorrMatchConfig) -> CorrMatchForSegmentation:
    """The network of a configuration, shapes without contents."""
    with torch.device("meta"):
        return CorrMatchForSegmentation(config)


def _check_fit(
    shapes: Mapping[str, tuple], model: CorrMatchForSegmentation, layout: ModuleType, path: Path
) -> None:
    """Raises InputError unless every weight of the network is there, in its shape, and no other."""
    expected = {name: tuple(value.shape) for name, value in _theirs(model, layout).items()}
    missing = [name for name in expected if name not in shapes and not layout.left_over(name)]
    unexpected = [name for name in shapes if name not in expected]
    misshapen = [
        f"{name} {shapes[name]} instead of {shape}"
        for name, shape in expected.items()
        if shapes.get(name, shape) != shape
    ]
    problems = (("missing", missing), ("not of this network", unexpected), ("of a wrong shape", misshapen))
    if found := [f"{what}: {some(names)}" for what, names in problems if names]:
        raise InputError(
            f"{path} does not fit the authors' network with encoder {model.config.encoder_name}; {'; '.join(found)}."
        )
