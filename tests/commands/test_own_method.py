"""The example of a method of one's own runs as it stands."""

import json
import math

from corrmatch_hf import CorrMatchForSegmentation
from examples.own_method import main


def test_it_trains_and_leaves_a_model(tmp_path):
    result = main(max_steps=3, output_dir=str(tmp_path / "run"))
    assert result["method"] == "entropy" and 0 <= result["final"]["mean_iou"] <= 1
    rows = [json.loads(line) for line in (tmp_path / "run" / "training_log.jsonl").read_text().splitlines()]
    entropy = rows[0]["loss/entropy"]
    assert 0 < entropy <= math.log(5)  # of five classes
    assert CorrMatchForSegmentation.from_pretrained(tmp_path / "run").config.num_labels == 5
