"""Hub tokens stay out of everything that is written, printed or published."""

from __future__ import annotations

import os
import re

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{10,}\b")


def without_tokens(text: str) -> str:
    """The text with every Hub token in it, and the value of HF_TOKEN whatever it looks like, replaced by ***."""
    own = os.environ.get("HF_TOKEN", "").strip()
    return _TOKEN.sub("***", text.replace(own, "***") if own else text)
