"""The papers of the methods, for those who use what they gave."""

from __future__ import annotations

from typing import NamedTuple


class Reference(NamedTuple):
    """text: a link in Markdown. bibtex: the entry."""

    text: str
    bibtex: str


REFERENCES = {
    "corrmatch": Reference(
        "[CorrMatch: Label Propagation via Correlation Matching for Semi-Supervised Semantic Segmentation]"
        "(https://arxiv.org/abs/2306.04300) (CVPR 2024)",
        """\
@inproceedings{sun2024corrmatch,
  title={CorrMatch: Label Propagation via Correlation Matching for Semi-Supervised Semantic Segmentation},
  author={Sun, Boyuan and Yang, Yuqi and Zhang, Le and Cheng, Ming-Ming and Hou, Qibin},
  booktitle={CVPR},
  year={2024}
}""",
    ),
}
