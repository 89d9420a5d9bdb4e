"""Export a trained model to ONNX or torch.export, to run without this package.

    python examples/export_onnx.py --model outputs/run --output model.onnx

This is `corrmatch export` as a script.
"""

import sys

from corrmatch_hf.commands import run

if __name__ == "__main__":
    sys.exit(run("export"))
