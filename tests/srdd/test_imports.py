"""What ``import srdd`` offers, and what it costs."""

import subprocess
import sys

import pytest

import srdd

WITHOUT_TORCH = [
    "srdd",
    "srdd.class_names",
    "srdd.errors",
    "srdd.presets",
    "srdd.train.config",
    "srdd.validation",
    "srdd.var.config",
]


def test_modules_of_settings_do_not_import_torch() -> None:
    """So a command line can show its choices and defaults at once."""
    code = f"import sys, {', '.join(WITHOUT_TORCH)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_is_found() -> None:
    assert set(srdd._MODULES) == set(srdd.__all__)
    for name in srdd.__all__:
        assert getattr(srdd, name).__module__ == srdd._MODULES[name]
        assert name in dir(srdd)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'srdd' has no attribute 'sampel'"):
        srdd.sampel  # noqa: B018
