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
    "unimatch": Reference(
        "[Revisiting Weak-to-Strong Consistency in Semi-Supervised Semantic Segmentation]"
        "(https://arxiv.org/abs/2208.09910) (UniMatch, CVPR 2023)",
        """\
@inproceedings{yang2023unimatch,
  title={Revisiting Weak-to-Strong Consistency in Semi-Supervised Semantic Segmentation},
  author={Yang, Lihe and Qi, Lei and Feng, Litong and Zhang, Wayne and Shi, Yinghuan},
  booktitle={CVPR},
  year={2023}
}""",
    ),
    "unimatch_v2": Reference(
        "[UniMatch V2: Pushing the Limit of Semi-Supervised Semantic Segmentation]"
        "(https://arxiv.org/abs/2410.10777) (TPAMI 2025)",
        """\
@article{yang2025unimatchv2,
  title={UniMatch V2: Pushing the Limit of Semi-Supervised Semantic Segmentation},
  author={Yang, Lihe and Zhao, Zhen and Zhao, Hengshuang},
  journal={TPAMI},
  year={2025}
}""",
    ),
    "fixmatch": Reference(
        "[FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence]"
        "(https://arxiv.org/abs/2001.07685) (NeurIPS 2020), as UniMatch's papers apply it to segmentation",
        """\
@inproceedings{sohn2020fixmatch,
  title={FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence},
  author={Sohn, Kihyuk and Berthelot, David and Li, Chun-Liang and others},
  booktitle={NeurIPS},
  year={2020}
}""",
    ),
    "ipixmatch": Reference(
        "The idea is that of [IPixMatch](https://arxiv.org/abs/2404.18891), read from its abstract; this is no "
        "reproduction of it",
        """\
@article{wu2024ipixmatch,
  title={IPixMatch: Boost Semi-supervised Semantic Segmentation with Inter-Pixel Relation},
  author={Wu, Kebin and Li, Wenbin and Xiao, Xiaofei},
  journal={arXiv:2404.18891},
  year={2024}
}""",
    ),
    "cps": Reference(
        "[Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision](https://arxiv.org/abs/2106.01226) "
        "(CVPR 2021)",
        """\
@inproceedings{chen2021cps,
  title={Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision},
  author={Chen, Xiaokang and Yuan, Yuhui and Zeng, Gang and Wang, Jingdong},
  booktitle={CVPR},
  year={2021}
}""",
    ),
    "dgcl": Reference(
        "Hunting Sparsity: Density-Guided Contrastive Learning for Semi-Supervised Semantic Segmentation (CVPR 2023)",
        """\
@inproceedings{wang2023dgcl,
  title={Hunting Sparsity: Density-Guided Contrastive Learning for Semi-Supervised Semantic Segmentation},
  author={Wang, Xiaoyang and Zhang, Bingfeng and Yu, Limin and Xiao, Jimin},
  booktitle={CVPR},
  year={2023}
}""",
    ),
    "mean_teacher": Reference(
        "[Mean teachers are better role models](https://arxiv.org/abs/1703.01780) (NIPS 2017), as in CPS's baseline",
        """\
@inproceedings{tarvainen2017mean,
  title={Mean teachers are better role models: Weight-averaged consistency targets improve semi-supervised deep learning
    results},
  author={Tarvainen, Antti and Valpola, Harri},
  booktitle={NIPS},
  year={2017}
}""",
    ),
}
