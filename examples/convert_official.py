"""Convert checkpoints of the authors of CorrMatch and UniMatch (V1, V2) to models of this package, and back.

    python examples/convert_official.py corrmatch_resnet101.pth outputs/corrmatch --recipe pascal

This is `corrmatch convert` as a script.
"""

import sys

from corrmatch_hf.commands import run

if __name__ == "__main__":
    sys.exit(run("convert"))
