"""Everything that is promised of a GPU, in one command of nine minutes: `python -m benchmarks --gpu`.

It needs this repository, torch, torchvision, timm, transformers, accelerate and Pillow, and no network; without
`datasets`, lists of rows in memory take its place. Each group of rows runs in a process of its own with a time limit,
and every row is written at once, so that an error, a crash or a slow group costs nothing but itself.

    python -m benchmarks --gpu                            # writes benchmarks/results/gpu.md
    python -m benchmarks --gpu kernels step               # some groups
    python -m benchmarks --gpu --dry_run --output x.md    # on the CPU, as small as can be: whether the script works
"""

from __future__ import annotations

import copy
import io
import itertools
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest import mock

Result = Iterator  # of `Row`s, and of texts for what is not a comparison


class Group(NamedTuple):
    rows: Callable[[str, bool], Result]  # (device, tiny)
    seconds: float  # limit


def main(names: list[str], output: Path, dry_run: bool = False, total: float = 530) -> int:
    """Run the groups `names`, all by default; the number of groups that did not end well."""
    from . import plain_datasets

    # A process whose driver has started cannot be forked. torch then counts GPUs without starting it.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    stand_in = plain_datasets.install(always=dry_run)
    _import_everything()
    from .__main__ import HEADER

    command = " ".join(["python -m benchmarks --gpu", *names, *(["--dry_run"] if dry_run else [])])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(f"`{command}`; float32 means without TF32.\n\n", encoding="utf-8")
    context, failures, start = multiprocessing.get_context("fork"), 0, time.monotonic()
    if not dry_run and not _ends_well(context.Process(target=_start_gpu)):
        context = multiprocessing.get_context("spawn")  # some import has started the driver after all
    for name in ["machine", *(names or [each for each in GROUPS if each != "machine"])]:
        seconds = min(GROUPS[name].seconds, total - (time.monotonic() - start))
        if seconds <= 0:
            _write(output, f"| {name} | | | | | **not run**: the time was used up |")
            failures += 1
            continue
        process = context.Process(target=_run, args=(name, output, dry_run))
        process.start()
        process.join(seconds)
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
            process.join()
            _write(output, f"| {name} | | | | | **stopped** after {seconds:.0f} s |")
            failures += 1
        elif process.exitcode:
            if process.exitcode != FAILED:
                _write(output, f"| {name} | | | | | **ended** with status {process.exitcode} |")
            failures += 1
        if failures and name == "machine":  # nothing else can work
            break
        if name == "machine":
            _write(output, "`datasets` is not installed.\n" * stand_in + f"\n{HEADER}")
    _write(output, f"\n{time.monotonic() - start:.0f} seconds; {failures} groups did not end well.")
    return failures


repeats = 5  # of what is timed; 1 in a dry run
FAILED = 3  # exit status of a group whose error is in the table


def _start_gpu() -> None:
    import torch

    try:
        torch.zeros(1, device="cuda")
    except (AssertionError, RuntimeError):
        os._exit(FAILED)


def _ends_well(process) -> bool:
    process.start()
    process.join(30)
    if process.is_alive():
        process.kill()
    return process.exitcode == 0


def _run(name: str, output: Path, tiny: bool) -> None:
    from . import plain_datasets

    plain_datasets.install(always=tiny)  # where processes are not forked
    from .__main__ import line

    global repeats
    os.setsid()  # so that it can be ended with its children
    device, ended = "cpu" if tiny else "cuda", 0
    repeats = 1 if tiny else repeats
    try:
        for row in GROUPS[name].rows(device, tiny):
            _write(output, row if isinstance(row, str) else line(row))
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split()).replace("|", "\\|")
        _write(output, f"| {name} | | | | | **error**: {reason[:500]} |")
        import traceback

        traceback.print_exc()
        ended = FAILED
    sys.stdout.flush()
    os._exit(ended)  # threads of loaders and compilers need not end first


def _write(output: Path, text: str) -> None:
    print(text, flush=True)
    with output.open("a", encoding="utf-8") as file:
        file.write(text + "\n")


def _import_everything() -> None:
    """Once, before the groups are forked: imports take ten seconds."""
    import accelerate  # noqa: F401
    import timm  # noqa: F401
    import transformers  # noqa: F401

    import corrmatch_hf.training.trainer  # noqa: F401
    from corrmatch_hf import CorrMatchForSegmentation  # noqa: F401

    from . import data, evaluation, inference, region_propagation, step_time, whole_step  # noqa: F401


def words(what: str, text: str) -> str:
    """A row without a comparison."""
    return f"| {what} | | | | | {text} |"


@contextmanager
def float32(tf32: bool = False) -> Iterator[None]:
    import torch

    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def filled(batch):
    """A blank batch with random pictures and labels: zeros could run faster."""
    import torch

    for name in ("image", "weak", "strong", "partner_weak"):
        value = getattr(batch, name)
        if value is not None and value.numel():
            value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name))))
    labels = torch.randint(0, 5, batch.label.shape, generator=torch.Generator().manual_seed(0))
    batch.label.copy_(labels)
    return batch


def small_method(name: str, device: str, tiny: bool):
    """A method on a small network without dropout, planned for a few steps; and its batch."""
    import torch

    from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation
    from corrmatch_hf.methods import method_class
    from corrmatch_hf.training.memory import blank_batch

    from .growth import NARROW

    torch.manual_seed(0)
    cls = method_class(name)
    config = CorrMatchConfig(
        encoder_name="test_resnet" if tiny else "resnet18",
        output_stride=16,
        num_labels=5,
        correlation_head=cls.uses_correlation_head,
        **NARROW,
    )
    options = {"dgcl_memory_size": 200} if name == "dgcl" else {}
    method = cls(CorrMatchForSegmentation(config), cls.Options(**options)).to(device).train()
    for module in method.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
    method.plan(_steps(tiny))
    images, crop = (2, 49) if tiny else (4, 129)
    return method, filled(blank_batch(method, images, images, crop, torch.device(device)))


# Of `small_method`: some with labelled images alone, where a method begins so, and some with both.
def _steps(tiny: bool) -> int:
    return 3 if tiny else 6


def _methods(tiny: bool) -> list[str]:
    from corrmatch_hf.methods import METHODS

    return ["corrmatch", "supervised"] if tiny else list(METHODS)


# --------------------------------------------------------------------------------------------------------- groups


def machine_rows(device: str, tiny: bool) -> Result:
    import torch

    from .__main__ import machine

    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("there is no GPU; --dry_run tries the script on the CPU")
    yield machine(device)
    if device == "cuda":
        size = 8192
        a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
        seconds = alone(lambda: a @ b, device) / 1e3
        yield f"bf16 product of {size}^2: {2 * size**3 / seconds / 1e12:.0f} TFLOP/s"
        big = torch.randn(2**28, device=device)
        seconds = alone(big.clone, device) / 1e3
        yield f"copy on the device: {2 * 4 * big.numel() / seconds / 1e12:.2f} TB/s read and written"


def alone(call: Callable[[], object], device: str) -> float:
    """Median milliseconds."""
    from .measure import milliseconds

    return milliseconds(lambda: None, call, device, repeats)[1]


def kernels(device: str, tiny: bool) -> Result:
    """Region propagation: Triton kernels against the batched form; on a CPU, packed words."""
    import torch

    from corrmatch_hf.ops.region_propagation.propagate import _propagate_batched, region_propagation

    from .measure import Row, milliseconds
    from .region_propagation import full_size_shapes, painted, same, scene

    crops, classes = ((33,), (2, 21)) if tiny else ((161, 321, 513, 801), (2, 5, 21, 60, 150))
    threshold = torch.tensor(0.85, device=device)
    for crop, count in itertools.product(crops, classes):
        maps, labels, confident, allowed = scene(crop, device, count)
        arguments = (labels, confident, full_size_shapes(maps, allowed), threshold, count)
        reference, ours = _propagate_batched(*arguments), region_propagation(*arguments)
        times = milliseconds(
            lambda arguments=arguments: _propagate_batched(*arguments),
            lambda arguments=arguments: region_propagation(*arguments),
            device,
            repeats,
        )
        what = f"region propagation, batched form against kernels, crop {crop}, {count} classes"
        note = painted(labels, confident, ours)
        yield Row(what, *times, "ms", same(reference, ours), None, note)


def step(device: str, tiny: bool) -> Result:
    """The whole CorrMatch step in every precision, against the plain form in float32."""
    import torch

    from .measure import Row, extra_mib, milliseconds
    from .whole_step import OurStep, PlainStep, waits

    what, method, batch, partners = _step_case(device, tiny)
    with float32():
        plain, ours = PlainStep(method), OurStep(method)
        expected, found = plain(batch, *partners), ours(batch)
        close = all(math.isclose(found[k].item(), v, rel_tol=1e-3, abs_tol=1e-5) for k, v in expected.items())
        plain_time = alone(lambda: plain(batch, *partners), device)
        memory = extra_mib(lambda: plain(batch, *partners), device)
        note = f"losses within 1e-3: {close}"
        yield Row(f"{what}, float32", plain_time, alone(lambda: ours(batch), device), "ms", close, 1.5, note)
        yield Row(
            f"{what}, float32, memory", memory, extra_mib(lambda: ours(batch), device), "MiB", None, None
        )
        plain = ours = None  # their memory is needed below
    variants = {
        "float32, contiguous": {"channels_last": False},
        "TF32": {},
        "bf16, contiguous": {"bf16": True, "channels_last": False},
        "bf16": {"bf16": True},
    }
    for name, options in variants.items():
        with float32(tf32=name == "TF32"):
            ours = OurStep(method, **options)
            yield Row(f"{what}, {name}", plain_time, alone(lambda ours=ours: ours(batch), device), "ms", None)
            if name in ("TF32", "bf16"):
                times = milliseconds(
                    lambda ours=ours: ours.network_alone(batch),
                    lambda ours=ours: ours(batch),
                    device,
                    repeats,
                )
                yield Row(f"the network's own passes against that step, {name}", *times, "ms", None, 0.9)
    memory_bf16 = extra_mib(lambda: ours(batch), device)
    yield Row(f"{what}, bf16, memory against the plain float32", memory, memory_bf16, "MiB", None)
    if device == "cuda":
        yield Row("times that step makes the host wait", 0, waits(lambda: ours(batch)), "", None)
        ours = None
        torch.cuda.empty_cache()
    yield from _split(device, tiny)


def _step_case(device: str, tiny: bool):
    from .growth import NARROW
    from .whole_step import confident_method, step_batch

    encoder, crop, images, config = ("test_resnet", 33, 2, NARROW) if tiny else ("resnet101s", 321, 8, {})
    method = confident_method(encoder, 21, device, **config)
    batch, *partners = step_batch(crop, images, 21, device)
    return f"CorrMatch step, {encoder}, crop {crop}, {images} + {images}", method, batch, partners


def _split(device: str, tiny: bool) -> Result:
    """Each part of a step in float32, synchronised before and after."""
    import torch

    from .growth import NARROW
    from .measure import Row
    from .step_time import measure

    config = NARROW if tiny else {}
    case = ("test_resnet", 8, 33, 2, 1) if tiny else ("resnet101s", 8, 321, 8, 5)
    names = ("encoder_name", "output_stride", "crop_size", "batch_size", "steps")
    parts = measure(
        "corrmatch", Namespace(**dict(zip(names, case, strict=True))), torch.device(device), **config
    )
    peak = parts.pop("peak MiB")
    whole = 1e3 * (sum(parts.values()) - parts.pop("data"))
    for part, seconds in parts.items():
        yield Row(f"float32 step against its part: {part}", whole, 1e3 * seconds, "ms", None)
    yield words("peak memory of that", f"{peak:.0f} MiB")


def compiled(device: str, tiny: bool) -> Result:
    from .measure import Row
    from .whole_step import OurStep

    what, method, batch, _ = _step_case(device, tiny)
    eager = OurStep(method, bf16=True)
    first = eager(batch)["total"].item()
    start = time.perf_counter()
    fast = OurStep(method, bf16=True, compiled=not tiny)
    same = math.isclose(fast(batch)["total"].item(), first, rel_tol=0.02)
    seconds = time.perf_counter() - start
    times = alone(lambda: eager(batch), device), alone(lambda: fast(batch), device)
    yield Row(
        f"{what}, bf16, compiled, against not compiled",
        *times,
        "ms",
        same,
        1.0,
        f"first step {seconds:.0f} s",
    )


def dinov2(device: str, tiny: bool) -> Result:
    """DINOv2 with DPT: UniMatch V2's step in bf16 against float32."""
    import torch

    from corrmatch_hf.methods import method_class
    from corrmatch_hf.training.memory import blank_batch

    from .decoders import BASE, SMALL, WIDTH, network
    from .measure import Row, extra_mib

    def case(encoder: str, crop: int, images: int) -> Result:
        torch.manual_seed(0)
        small = {"encoder_kwargs": {"depth": 4, "embed_dim": 48, "num_heads": 3}} if tiny else {}
        model = network(encoder, "dpt", decoder_channels=WIDTH.get(encoder, 8), **small)
        method = method_class("unimatch_v2")(model).to(device).train()
        batch = filled(blank_batch(method, images, images, crop, torch.device(device)))
        optimizer = torch.optim.AdamW(method.parameters(), lr=1e-5, fused=True)

        def once(bf16: bool) -> None:
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                loss, _ = method(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        with float32():
            times = [alone(lambda bf16=bf16: once(bf16), device) for bf16 in (False, True)]
            memory = [extra_mib(lambda bf16=bf16: once(bf16), device) for bf16 in (False, True)]
        what = f"UniMatch V2 step, {encoder} with DPT, crop {crop}, {images} + {images}, float32 against bf16"
        yield Row(what, *times, "ms", None)
        yield Row(f"{what}, memory", *memory, "MiB", None)

    for arguments in [("test_vit", 64, 1)] if tiny else [(SMALL, 518, 4), (BASE, 518, 4)]:
        yield from case(*arguments)
        if device == "cuda":
            torch.cuda.empty_cache()


def synchronisations(device: str, tiny: bool) -> Result:
    """No method's step may wait for the GPU: `set_sync_debug_mode("error")` raises where one does."""
    import torch

    for name in _methods(tiny):
        method, batch = small_method(name, device, tiny)
        optimizer = torch.optim.SGD(method.parameters(), lr=1e-3, momentum=0.9, fused=True)
        problem = ""
        try:
            for number in range(_steps(tiny)):
                batch.step = number
                # The first step with labelled images alone, and the first with both, allocate and compile.
                strict = device == "cuda" and number not in (0, 1, method.supervised_passes)
                if strict:
                    torch.cuda.set_sync_debug_mode("error")
                loss, _ = method(batch)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                method.after_step()
                if device == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
        except Exception as error:
            problem = f"**{type(error).__name__}**: {str(error).splitlines()[0][:200]}{_place(error)}"
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        yield words(f"host waits in a step of {name}", problem or "none")


def _place(error: Exception) -> str:
    import traceback

    own = [f for f in traceback.extract_tb(error.__traceback__) if "corrmatch_hf" in f.filename]
    return f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""


@contextmanager
def draws_of_the_cpu() -> Iterator[None]:
    """Random numbers of a generator on the GPU become those that one on the CPU with the same seed gives."""
    import torch

    plain, twins = {name: getattr(torch, name) for name in ("rand", "randint")}, {}

    def drawn(name: str) -> Callable:
        def draw(*args, generator=None, device=None, **options):
            if generator is not None and generator.device.type != "cpu":
                key = id(generator)
                if key not in twins:  # keep the generator alive, for its id is the key
                    twins[key] = generator, torch.Generator().manual_seed(generator.initial_seed())
                return plain[name](*args, generator=twins[key][1], **options).to(device)
            return plain[name](*args, generator=generator, device=device, **options)

        return draw

    with mock.patch.multiple(torch, **{name: drawn(name) for name in plain}):
        yield


def losses(device: str, tiny: bool) -> Result:
    """The losses of the same weights, batches and random numbers on CPU and GPU."""
    for name in _methods(tiny):
        method, batch = small_method(name, "cpu", tiny)
        other, other_batch = copy.deepcopy(method).to(device), batch.to(device)
        worst, where = 0.0, ""
        with float32(), draws_of_the_cpu():
            for number in range(_steps(tiny)):
                batch.step = other_batch.step = number
                (loss, logs), (other_loss, other_logs) = method(batch), other(other_batch)
                pairs = {"loss": (loss, other_loss)} | {k: (v, other_logs[k]) for k, v in logs.items()}
                for key, values in pairs.items():
                    one, two = (float(value) for value in values)
                    difference = abs(one - two) / max(abs(one), 1e-2)
                    if not difference <= worst:
                        worst, where = difference, f"{key} of step {number}: {one:.6g} and {two:.6g}"
                method.after_step(), other.after_step()
        verdict = "equal" if worst < 1e-3 else f"**different** ({where})"
        yield words(f"losses of {name}, CPU and GPU", f"{verdict}; largest relative difference {worst:.1e}")


def inference_rows(device: str, tiny: bool) -> Result:
    import torch

    from . import inference

    if tiny:
        inference.SIZE = 64
        found = inference.rows("cpu", compiled=False, encoder_name="test_resnet")
        yield words("inference", f"{len(list(found))} rows")
        return
    with float32():
        yield from inference.rows(device, compiled=False)
        torch.cuda.empty_cache()
        yield from inference.rows(device, compiled=True)


def evaluation_rows(device: str, tiny: bool) -> Result:
    from . import evaluation

    if tiny:
        yield from evaluation.rows(device, cases=(("test_resnet", (33, 49), 4),))
    else:
        yield from evaluation.rows(device)


def loading(device: str, tiny: bool) -> Result:
    """Batches of 8 + 8 crops from JPEG files with 0 to 8 loading processes, against the rate of the bf16 step."""
    from corrmatch_hf.data import Augmentation, training_batches

    from .data import photo_files
    from .measure import Row, synchronize
    from .whole_step import OurStep

    what, method, batch, _ = _step_case(device, tiny)
    ours = OurStep(method, bf16=True)
    step_time = alone(lambda: ours(batch), device)
    images, crop, count = (2, 33, 3) if tiny else (8, 321, 30)
    with tempfile.TemporaryDirectory() as folder:
        data = photo_files(Path(folder), 4 if tiny else 64)
        for workers in (0, 1) if tiny else (0, 1, 2, 4, 8):
            batches = training_batches(
                data, Augmentation(crop_size=crop), labeled_batch=images, unlabeled_batch=images, seed=0,
                num_workers=workers, pin_memory=device == "cuda",
            )  # fmt: skip
            for _ in range(1 + 2 * workers):  # what was loaded ahead
                next(batches).to(device)
            synchronize(device)
            start = time.perf_counter()
            for _ in range(count):
                next(batches).to(device)
            synchronize(device)
            spent = 1e3 * (time.perf_counter() - start) / count
            batches.close()
            yield Row(
                f"{what} in bf16, against loading its batch with {workers} processes", step_time, spent, "ms",
                None, None, "above 1: the step never waits",
            )  # fmt: skip


def fp16(device: str, tiny: bool) -> Result:
    """The trainer in fp16: what the scaler does."""
    if device != "cuda":
        yield words("training in fp16", "needs a GPU")
        return
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer("corrmatch", Path(folder), 30, mixed_precision="fp16")
        with redirect_stdout(io.StringIO()):
            trainer.train()
        scaler, rows = trainer.accelerator.scaler, _log(Path(folder))
        finite = all(math.isfinite(row["loss"]) for row in rows)
        yield words(
            "30 steps of training in fp16",
            f"losses finite: {finite}; loss {rows[0]['loss']:.3f} to {rows[-1]['loss']:.3f}; "
            f"scale {scaler.get_scale():g}",
        )


def _log(folder: Path) -> list[dict]:
    import json

    lines = (folder / "training_log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row.get("loss") is not None]


def _trainer(name: str, folder: Path, steps: int, **config):
    """A short training on the synthetic set."""
    import torch

    from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation, SemiSupervisedTrainer, TrainingConfig
    from corrmatch_hf.data.sources.synthetic import synthetic_semi_dataset
    from corrmatch_hf.methods import method_class

    torch.manual_seed(0)
    cls = method_class(name)
    data = synthetic_semi_dataset(labeled=8, unlabeled=24, validation=4)
    small = {"aspp_channels": 32, "low_level_channels": 24, "decoder_channels": 32}
    model = CorrMatchForSegmentation(
        CorrMatchConfig(
            encoder_name="test_resnet", output_stride=8, id2label=data.id2label,
            label2id={label: i for i, label in data.id2label.items()},
            correlation_head=cls.uses_correlation_head, **small,
        )
    )  # fmt: skip
    options = cls.Options(**({"dgcl_memory_size": 200} if name == "dgcl" else {}))
    defaults = {
        "output_dir": str(folder), "max_steps": steps, "per_device_batch_size": 4, "crop_size": 65,
        "optimizer": "adamw", "learning_rate": 0.002, "head_lr_multiplier": 1, "logging_steps": 1, "num_workers": 0,
    }  # fmt: skip
    return SemiSupervisedTrainer(cls(model, options), data, TrainingConfig(**(defaults | config)))


def trainings(device: str, tiny: bool) -> Result:
    """A training of every method, and one resumed from its middle: the same weights in the end."""
    from corrmatch_hf.training import report

    steps = 2 if tiny else 20
    for number, name in enumerate(_methods(tiny)):
        if tiny or number == 1:  # one report is enough; the process ends with this group
            report.write_report = lambda folder, facts: None
        try:
            with tempfile.TemporaryDirectory() as folder:
                first, second = Path(folder, "whole"), Path(folder, "resumed")
                start = time.perf_counter()
                trainer = _trainer(name, first, steps, save_steps=steps // 2, eval_steps=steps)
                with redirect_stdout(io.StringIO()):
                    trainer.train()
                checkpoint = first / "checkpoints" / f"step_{steps // 2:08d}"
                resumed = _trainer(name, second, steps, resume_from_checkpoint=str(checkpoint))
                with redirect_stdout(io.StringIO()):
                    resumed.train()
                seconds = time.perf_counter() - start
                one, two = (each.method.state_dict() for each in (trainer, resumed))
                worst = max(float((one[key].double() - two[key].double()).abs().max()) for key in one)
                rows = _log(first)
                yield words(
                    f"training of {name}, {steps} steps",
                    f"loss {rows[0]['loss']:.3f} to {rows[-1]['loss']:.3f}, mean IoU "
                    f"{100 * trainer.metrics['mean_iou']:.1f}, {seconds:.0f} s; weights of the resumed run "
                    + ("equal" if worst == 0 else f"{worst:.1e} apart"),
                )
        except Exception as error:
            problem = f"**{type(error).__name__}**: {' '.join(str(error).split())[:300]}{_place(error)}"
            yield words(f"training of {name}", problem.replace("|", "\\|"))


def promise_rows(device: str, tiny: bool) -> Result:
    """A short form of `promise.py`: supervised and semi-supervised on real photos."""
    what, shared = "short study of unlabelled photos", Path(os.environ.get("CORRMATCH_SHARED", "shared"))
    if not hasattr(sys.modules.get("datasets"), "load_dataset"):
        yield words(what, "needs the package `datasets`")
        return
    if not (shared / "data").is_dir() or not (shared / "weights" / "resnet50.safetensors").is_file():
        yield words(what, f"needs photos and weights in {shared} (set CORRMATCH_SHARED)")
        return
    from .promise import parse_run, summary, train

    for candidate in ("supervised", "fixmatch_ema"):
        run = parse_run(
            ["voc31", "--candidate", candidate, "--steps", "60", "--set", "encoder=resnet50", "evaluations=1"]
        )
        with tempfile.TemporaryDirectory() as work:
            result = train(run, shared, Path(work))
        yield words(f"{what}: {run.name}", f"mean IoU/accuracy {summary(result['average'])}")


GROUPS = {
    "machine": Group(machine_rows, 30),
    "kernels": Group(kernels, 60),
    "synchronisations": Group(synchronisations, 35),
    "losses": Group(losses, 45),
    "step": Group(step, 75),
    "trainings": Group(trainings, 100),
    "fp16": Group(fp16, 20),
    "loading": Group(loading, 50),
    "evaluation": Group(evaluation_rows, 45),
    "dinov2": Group(dinov2, 45),
    "compiled": Group(compiled, 100),
    "inference": Group(inference_rows, 75),
    "promise": Group(promise_rows, 60),
}
