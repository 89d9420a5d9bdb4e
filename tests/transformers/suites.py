"""transformers' own test suites, from its source package: the wheel has none.

    pip download --no-deps --no-binary transformers transformers==VERSION && tar xf transformers-*.tar.gz
    TRANSFORMERS_SOURCE=transformers-VERSION pytest tests/transformers

They are loaded as the package `transformers_suites`. What the source package leaves out (text generation, exporters) is
stood in for here.
"""

import importlib
import os
import sys
import types
from pathlib import Path

import pytest

NAME = "transformers_suites"
LEFT_OUT = {
    "exporters.test_export": {"ExportTesterMixin": object},
    "generation.test_utils": {"GenerationTesterMixin": object},
    # Values of every field of PreTrainedConfig that differ from its defaults.
    "utils.test_configuration_utils": {
        "config_common_kwargs": {
            "return_dict": False,
            "output_hidden_states": True,
            "output_attentions": True,
            "dtype": "float16",
            "chunk_size_feed_forward": 5,
            "architectures": ["OtherModel"],
            "id2label": {0: "label"},
            "label2id": {"label": "0"},
            "problem_type": "regression",
        }
    },
}


def suite(name: str) -> types.ModuleType:
    """The module `tests/<name>.py` of the source package; skips the whole test file where there is none."""
    source = os.environ.get("TRANSFORMERS_SOURCE")
    if not source or not (Path(source) / "tests" / f"{name}.py").is_file():
        pytest.skip(
            "set TRANSFORMERS_SOURCE to transformers' unpacked source package", allow_module_level=True
        )
    pytest.importorskip("parameterized")
    if NAME not in sys.modules:
        fetch = types.ModuleType("fetch_hub_objects_for_ci")  # a script of transformers' CI
        fetch.url_to_local_path = lambda url: url
        sys.modules.setdefault(fetch.__name__, fetch)
        package = types.ModuleType(NAME)
        package.__path__ = [str(Path(source) / "tests")]
        sys.modules[NAME] = package
        (Path(source) / "tests" / "__init__.py").touch()  # read by the suite of configurations
        for path, content in LEFT_OUT.items():
            folder = path.split(".")[0]
            if not (Path(source) / "tests" / folder).is_dir():
                sys.modules[f"{NAME}.{folder}"] = types.ModuleType(f"{NAME}.{folder}")
                module = sys.modules[f"{NAME}.{path}"] = types.ModuleType(f"{NAME}.{path}")
                for name_, value in content.items():
                    setattr(module, name_, type(name_, (), {}) if value is object else value)
    return importlib.import_module(f"{NAME}.{name}")
