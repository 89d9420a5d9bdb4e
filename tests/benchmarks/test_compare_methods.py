"""The comparison's table, and that it holds runs of one kind only."""

import json

import pytest

from benchmarks import compare_methods


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_methods, "RESULTS", tmp_path)
    (tmp_path / "few").mkdir()

    def add(method, seed, mean_iou, cpu_seconds=10.0, resumed=False, options=("--max_steps", "5")):
        result = {
            "method": method, "seed": seed, "options": list(options), "resumed": resumed, "steps": 5, "seconds": 9,
            "cpu_seconds": cpu_seconds, "peak_memory_mib": 100 + seed, "mean_iou": mean_iou, "best_mean_iou": mean_iou,
            "pixel_accuracy": 0.9, "per_class": {},
        }  # fmt: skip
        (tmp_path / "few" / f"{method}-{seed}.json").write_text(json.dumps(result))

    return add


def compare(monkeypatch, *arguments):
    command = ["compare_methods.py", "--name", "few", "--methods", "supervised", "cps", *arguments]
    monkeypatch.setattr("sys.argv", command)
    compare_methods.main()


def test_mean_deviation_and_order(results, monkeypatch, tmp_path):
    results("supervised", 0, 0.40)
    results("supervised", 1, 0.44, cpu_seconds=99.0, resumed=True)  # its cost is not that of a whole run
    results("cps", 0, 0.50)
    results("cps", 1, 0.52)
    compare(monkeypatch, "--seeds", "0", "1", "--", "--max_steps", "5")
    rows = [line for line in (tmp_path / "few.md").read_text().splitlines() if line.startswith("| ")][2:]
    assert [row.split("|")[1].strip() for row in rows] == ["cps", "supervised"]
    cells = [cell.strip() for cell in rows[1].split("|")]
    assert cells[2:5] == ["2", "5", "42.0 ± 2.8"]
    assert cells[7:10] == ["1 + 0", "2.00", "101"]


def test_runs_of_other_options_are_refused_whatever_they_are_of(results, monkeypatch):
    results("supervised", 0, 0.4)
    results("cps", 0, 0.4)
    results("dgcl", 7, 0.4, options=("--max_steps", "9"))
    with pytest.raises(SystemExit, match=r"dgcl-7\.json is of other options"):
        compare(monkeypatch, "--", "--max_steps", "5")


def test_an_unfinished_run_of_other_options_is_not_gone_on_with(results, monkeypatch, tmp_path):
    output = tmp_path / "runs" / "supervised-0"
    (output / "checkpoints" / "step_2").mkdir(parents=True)
    (tmp_path / "runs" / "supervised-0.json").write_text(json.dumps({"options": ["--max_steps", "9"]}))
    monkeypatch.setattr(compare_methods.subprocess, "Popen", lambda command: pytest.fail("it was started"))
    with pytest.raises(SystemExit, match="other options"):
        compare_methods.run("supervised", 0, ["--max_steps", "5"], output)
