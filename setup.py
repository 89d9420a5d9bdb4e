"""The package's description on PyPI: the README with absolute links, since relative ones only work in the repository.

Everything else is declared in pyproject.toml.
"""

import re
from pathlib import Path

from setuptools import setup

REPOSITORY = "corrmatch-hf/corrmatch-hf"

text = Path("README.md").read_text(encoding="utf-8")
text = re.sub(r"(!\[[^\]]*\]\()(?!http)", rf"\1https://raw.githubusercontent.com/{REPOSITORY}/main/", text)
text = re.sub(r"(\]\()(?!http)", rf"\1https://github.com/{REPOSITORY}/blob/main/", text)
setup(long_description=text, long_description_content_type="text/markdown")
