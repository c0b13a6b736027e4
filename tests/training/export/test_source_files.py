"""Copied modules form a folder of their own."""

import re

import pytest

from lotlip_data.training.export.source_files import write_sources
from lotlip_data.training.export.transformers_folder import MODULES


def test_a_copy_imports_the_modules_beside_it_and_nothing_of_this_project(tmp_path):
    write_sources(MODULES, tmp_path, is_package=True)
    names = {file.stem for file in tmp_path.iterdir()}
    assert {"modeling_lotlip", "towers", "pooling", "text_forms", "subcaptions", "pixels"} <= names
    for file in tmp_path.iterdir():
        source = file.read_text()
        assert "import lotlip_data" not in source and "from lotlip_data" not in source
        assert set(re.findall(r"^\s*from \.(\w+) import", source, re.MULTILINE)) <= names


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("lotlip_data.training.models", "is not a module"),
        ("lotlip_data.training.data.tokenizer", "lotlip_data.manifests is not a module"),
    ],
)
def test_an_import_without_a_counterpart_is_an_error(module, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_sources([module], tmp_path, is_package=True)
