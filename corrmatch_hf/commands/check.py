"""`corrmatch check`: the report of a dataset, before training on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.options import DataOptions
from ..errors import check_writable_file
from ..options import LARGEST_CROP, Options, option
from . import COMMANDS
from .arguments import parse

EXAMPLES = """
corrmatch check --data_dir photos
corrmatch check --config my.yaml       # the file that training is given
corrmatch check --dataset_name user/dataset --limit 500 --output report.json
corrmatch check --data_dir VOC2012 --labeled_list labeled.txt \\
    --unlabeled_list unlabeled.txt
"""


@dataclass
class CheckOptions(Options):
    """How much is read, and where the report goes."""

    crop_size: int = option(
        321,
        "Side of the training crops in pixels; smaller images are counted.",
        group="Report",
        common=True,
        at_least=1,
        at_most=LARGEST_CROP,
    )
    limit: int | None = option(
        None,
        "Images to read of each part, evenly spread; by default all (give a number for streams).",
        group="Report",
        common=True,
        at_least=1,
    )
    output: str | None = option(
        None, "JSON file to also write the report to.", group="Report", common=True, metavar="FILE"
    )


def main(args: Sequence[str]) -> bool:
    """Print the report; whether training would accept the dataset."""
    options, data_options = parse(
        "check",
        CheckOptions,
        DataOptions,
        args=args,
        description=COMMANDS["check"],
        examples=EXAMPLES,
        of_training=True,
    )
    if options.output is not None:
        check_writable_file("--output", options.output, ".json")
    # Heavy imports come after parsing, so that --help is fast.
    from ..data.check import scan_dataset
    from ..data.check_report import format_report
    from ..data.load import load_semi_dataset

    data = load_semi_dataset(data_options)
    report = scan_dataset(data, crop_size=options.crop_size, limit=options.limit, progress=True)
    print(format_report(report))
    if options.output is not None:
        output = Path(options.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report.as_dict(), indent=2, ensure_ascii=False)
        output.write_text(f"{text}\n", encoding="utf-8")
        print(f"written to {output}")
    return not report.refused
