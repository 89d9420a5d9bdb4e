"""The authors' checkpoints, CorrMatch's and UniMatch V1's `.pth` files: to models of this package and back.

Both methods have one network, DeepLabV3+ on a ResNet whose stem is three 3x3 convolutions (timm's resnet50s and
resnet101s); CorrMatch adds the correlation head. The weights tell encoder, widths, number of classes and correlation
head. They do not tell the output stride, nor what the classes are called.
"""

from __future__ import annotations

import functools
import hashlib
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from corrmatch_hf.errors import InputError
from corrmatch_hf.model import CorrMatchConfig, CorrMatchForSegmentation
from corrmatch_hf.model.encoder_weights_corrmatch import inflation

PREFIXES = {  # theirs: ours
    "backbone.": "encoder.body.",
    "head.b0.0.": "decoder.aspp.point.conv.",
    "head.b0.1.": "decoder.aspp.point.norm.",
    **{f"head.b{i}.0.": f"decoder.aspp.dilated.{i - 1}.conv." for i in (1, 2, 3)},
    **{f"head.b{i}.1.": f"decoder.aspp.dilated.{i - 1}.norm." for i in (1, 2, 3)},
    "head.b4.gap.1.": "decoder.aspp.pooled.conv.",
    "head.b4.gap.2.": "decoder.aspp.pooled.norm.",
    "head.project.0.": "decoder.aspp.project.conv.",
    "head.project.1.": "decoder.aspp.project.norm.",
    "reduce.0.": "decoder.fuse.reduce.conv.",
    "reduce.1.": "decoder.fuse.reduce.norm.",
    "fuse.0.": "decoder.fuse.convs.0.conv.",
    "fuse.1.": "decoder.fuse.convs.0.norm.",
    "fuse.3.": "decoder.fuse.convs.1.conv.",
    "fuse.4.": "decoder.fuse.convs.1.norm.",
    "classifier.": "decoder.classify.",
    "proj.0.": "correlation.project.conv.",
    "proj.1.": "correlation.project.norm.",
    "corr.conv1.": "correlation.query.",
    "corr.conv2.": "correlation.key.",
}
ENCODERS = {(3, 4, 6, 3): "resnet50s", (3, 4, 23, 3): "resnet101s"}  # blocks of the four stages: timm's name
COUNTER = ".num_batches_tracked"  # BatchNorms of before PyTorch 0.4.1 have none; nothing depends on it here


def from_official(
    path: str | Path,
    *,
    key: str | None = None,
    output_stride: int | None = None,
    id2label: Mapping[int, str] | None = None,
) -> CorrMatchForSegmentation:
    """The model of one of the authors' checkpoints, in eval mode; its weights stay in the file until they are used.

    Runs no code of the file. Whatever lies beside the weights is left alone, and names may begin with the
    "module." of data-parallel training. The file's name and SHA-256 go into the configuration, as `converted_from`.

    Args:
        path: a `.pth` file: the weights, or a dictionary that holds them.
        key: the name of the weights in that dictionary, where it holds several ("model", "model_ema").
        output_stride: the one that the network was trained with; by default the published one, 8 with
            a correlation head (CorrMatch) and 16 without (UniMatch).
        id2label: names of the classes 0 ... K-1; by default LABEL_0 and so on.

    Raises:
        InputError: no such file; one that is damaged or holds code; weights that are not this network's, all of
            them named; another number of classes than `id2label` names.
    """
    path = Path(path)
    state = _read(path, key)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    network = _recognise(shapes, path)
    if output_stride is None:
        output_stride = 8 if network["correlation_head"] else 16
    try:
        config = CorrMatchConfig(**network, output_stride=output_stride)
    except ValueError as error:  # widths and numbers of classes beyond what it takes
        raise InputError(f"{path} is no checkpoint of CorrMatch or UniMatch V1: {error}") from error
    model = _on_meta(config)
    _check_fit(shapes, model, path)

    num_labels = model.config.num_labels
    if id2label is not None:
        if sorted(id2label) != list(range(num_labels)):
            raise InputError(
                f"{path} tells {num_labels} classes apart, so {num_labels} names are needed, for the ids 0 to "
                f"{num_labels - 1}; given are {len(id2label)}: {_some(id2label.values())}."
            )
        model.config.id2label = {i: id2label[i] for i in range(num_labels)}
        model.config.label2id = {name: i for i, name in model.config.id2label.items()}
    model.config.converted_from = {"file": path.name, "sha256": _sha256(path)}

    # One precision for all: the widest there is, so that nothing is lost.
    floats = {value.dtype for value in state.values() if value.is_floating_point()}
    dtype = functools.reduce(torch.promote_types, floats)
    renamed = {
        _renamed(name, PREFIXES): value.to(dtype) if value.is_floating_point() else value
        for name, value in state.items()
    }
    counters = {name for name in model.state_dict() if name.endswith(COUNTER)} - renamed.keys()
    renamed |= {name: torch.tensor(0) for name in counters}
    model.load_state_dict(renamed, assign=True)
    return model.eval()


def to_official(model: CorrMatchForSegmentation) -> dict[str, torch.Tensor]:
    """The model's weights under the authors' names, without copying them.

    Channels may be other than the authors' 256, 48 and 256, which their own code cannot load.

    Raises:
        InputError: the network differs from the authors' in more than its channels.
    """
    config = model.config
    wrong = []
    if config.encoder_name.split(".")[0] not in ENCODERS.values():
        wrong.append(f"encoder {config.encoder_name} instead of {' or '.join(ENCODERS.values())}")
    if own := {k: v for k, v in (config.encoder_kwargs or {}).items() if not k.startswith("drop_")}:
        wrong.append(f"an encoder built with {own}")
    if len(config.aspp_rates) != 3:
        wrong.append(f"{len(config.aspp_rates)} dilation rates instead of 3")
    if config.correlation_head and config.correlation_position != "encoder":
        wrong.append(f"a correlation head on the {config.correlation_position} instead of the encoder")
    if config.correlation_head and config.correlation_scale != "scores":
        wrong.append(f"correlation_scale {config.correlation_scale} instead of scores")
    if wrong:
        raise InputError(f"The authors' layout has no place for this network: it has {' and '.join(wrong)}.")
    ours = {theirs: our for our, theirs in PREFIXES.items()}
    return {_renamed(name, ours): value for name, value in model.state_dict().items()}


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


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    prefix = next(prefix for prefix in prefixes if name.startswith(prefix))
    return prefixes[prefix] + name.removeprefix(prefix)


def _on_meta(config: CorrMatchConfig) -> CorrMatchForSegmentation:
    """The network of a configuration, shapes without contents."""
    with torch.device("meta"):
        return CorrMatchForSegmentation(config)


def _recognise(shapes: Mapping[str, tuple], path: Path) -> dict:
    """The arguments of `CorrMatchConfig` that weights of these shapes tell."""
    blocks = [0, 0, 0, 0]
    for name in shapes:
        if found := re.match(r"backbone\.layer([1-4])\.(\d+)\.", name):
            stage = int(found[1]) - 1
            blocks[stage] = max(blocks[stage], int(found[2]) + 1)
    encoder = ENCODERS.get(tuple(blocks))
    if encoder is None:
        known = " or ".join(f"{name} {blocks}" for blocks, name in ENCODERS.items())
        raise InputError(
            f"{path} is no checkpoint of CorrMatch or UniMatch V1 with a ResNet: the stages backbone.layer1 to 4 have "
            f"{tuple(blocks)} blocks instead of {known}; its weights are {_some(shapes)}."
        )

    def channels(name: str, default: int) -> int:
        return (shapes.get(name) or (default,))[0]

    labels = channels("classifier.weight", channels("classifier.bias", 1))
    network = {
        "encoder_name": encoder,
        "num_labels": labels,
        "aspp_channels": channels("head.b0.0.weight", 256),
        "low_level_channels": channels("reduce.0.weight", 48),
        "decoder_channels": channels("fuse.0.weight", 256),
        "correlation_head": any(name.startswith(("corr.", "proj.")) for name in shapes),
    }
    if network["correlation_head"]:
        dim = channels("corr.conv1.weight", labels)
        network["correlation_channels"] = channels("proj.0.weight", 256)
        network["correlation_dim"] = None if dim == labels else dim
    return network


def _check_fit(shapes: Mapping[str, tuple], model: CorrMatchForSegmentation, path: Path) -> None:
    """Raises InputError unless every weight of the network is there, in its shape, and no other."""
    expected = {name: tuple(value.shape) for name, value in to_official(model).items()}
    missing = [name for name in expected if name not in shapes and not name.endswith(COUNTER)]
    unexpected = [name for name in shapes if name not in expected]
    misshapen = [
        f"{name} {shapes[name]} instead of {shape}"
        for name, shape in expected.items()
        if shapes.get(name, shape) != shape
    ]
    problems = (("missing", missing), ("not of this network", unexpected), ("of a wrong shape", misshapen))
    if found := [f"{what}: {_some(names)}" for what, names in problems if names]:
        raise InputError(
            f"{path} does not fit the authors' network with encoder {model.config.encoder_name}; {'; '.join(found)}."
        )


def _read(path: Path, key: str | None) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint file, without "module."."""
    checkpoint = _load(path)
    sets = {}
    if isinstance(checkpoint, Mapping):
        sets = {name: value for name, value in checkpoint.items() if _is_state(value)}
        if not sets and key is None and _is_state(checkpoint):
            sets = {None: checkpoint}
    if not sets:
        raise InputError(
            f"{path} holds no weights, neither as a whole nor under a name such as 'model': name a checkpoint of "
            "CorrMatch or UniMatch V1."
        )
    if key not in sets and (key is not None or len(sets) > 1):
        given = "holds several sets of weights" if key is None else f"holds no weights named {key!r}"
        raise InputError(f"{path} {given}: choose one of {_some(map(str, sets))} by --key.")
    state = sets[key] if key in sets else next(iter(sets.values()))
    if inflated := inflation(path, state.values()):
        raise InputError(f"{path} is refused, for {inflated}.")
    while all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return dict(state)


def _is_state(value) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items())
    )


class _Ignored:
    """Takes the place of a NumPy number in a checkpoint, such as the best score so far, and forgets it."""

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        pass


# Of these a pickled NumPy number is made, in either generation of NumPy; torch looks classes up by such names.
NUMPY = [
    type(name, (_Ignored,), {"__module__": module})
    for module, name in (
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy", "dtype"),
    )
]


def _load(path: Path):
    """What a checkpoint file holds: tensors, mapped rather than read where the format allows, and plain values."""
    if not path.is_file():
        raise InputError(f"There is no checkpoint file {path}: check its name.")
    if inflated := inflation(path):
        raise InputError(f"{path} is refused, for {inflated}.")
    try:
        with torch.serialization.safe_globals(NUMPY):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a broken or hostile file can raise anything
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise InputError(
                f"{path} holds more than weights: it would run {found[1]} when loaded, so it is refused, and nothing "
                "of it was run. Where you trust the file, save its weights alone: "
                "torch.save(torch.load(FILE, weights_only=False)['model'], NEW_FILE)."
            ) from error
        raise InputError(
            f"{path} cannot be read as a PyTorch checkpoint ({type(error).__name__}): it is damaged, incomplete or "
            "something else."
        ) from error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
