"""Read a dataset before training on it: what it holds, and everything that is wrong with it.

    python examples/check_dataset.py --data_dir photos
    python examples/check_dataset.py --dataset_name user/dataset --limit 500 --output report.json
    python examples/check_dataset.py --data_dir VOC2012 --labeled_list labeled.txt --unlabeled_list unlabeled.txt

The data are described as for training. The exit status is 1 if training would stop on them.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from corrmatch_hf.commands.arguments import DataArguments, parse
from corrmatch_hf.data.check import scan_dataset
from corrmatch_hf.data.check_report import format_report
from corrmatch_hf.errors import InputError


@dataclass
class ScanArguments:
    """How much is read, and where the report goes."""

    crop_size: int = field(
        default=321, metadata={"help": "Side of the training crops; smaller images are counted."}
    )
    limit: int | None = field(
        default=None,
        metadata={"help": "Images read of each part, evenly spread; by default all (of a stream: give one)."},
    )
    output: str | None = field(default=None, metadata={"help": "JSON file to write the report to, too."})


def main(args: list[str] | None = None) -> bool:
    """Whether training would accept the dataset."""
    # Arguments
    arguments, data_arguments = parse(
        ScanArguments, DataArguments, args=args, description=__doc__.split("\n")[0]
    )
    if arguments.limit is not None and arguments.limit < 1:
        raise InputError(
            f"--limit is {arguments.limit}: give at least 1, or leave it out to read everything."
        )
    if arguments.output is not None and Path(arguments.output).is_dir():
        raise InputError(f"--output {arguments.output} is a folder; name a file.")

    # Dataset
    data = data_arguments.load()

    # Report
    report = scan_dataset(data, crop_size=arguments.crop_size, limit=arguments.limit, progress=True)
    print(format_report(report))
    if arguments.output is not None:
        output = Path(arguments.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report.as_dict(), indent=2, ensure_ascii=False)
        output.write_text(f"{text}\n", encoding="utf-8")
        print(f"written to {output}")
    return not report.refused


if __name__ == "__main__":
    try:
        sys.exit(0 if main() else 1)
    except InputError as error:
        sys.exit(f"error: {error}")
