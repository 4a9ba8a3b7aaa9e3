"""The names of the format stand once per language, and the two and the document agree."""

import re
from pathlib import Path

from llama_so8t import format

ROOT = Path(__file__).parents[1]
HEADER = (ROOT / "llama_so8t/csrc/model/so8t-format.h").read_text()


def defined(prefix: str) -> dict[str, str]:
    return dict(re.findall(rf'#define {prefix}(\w+)\s+"([^"]+)"', HEADER))


def python_keys() -> dict[str, str]:
    keys = {name: value for name, value in vars(format.Keys).items() if name.isupper()}
    return {name: value.replace("{name}", "%s") for name, value in keys.items()}


def test_keys_are_the_same_in_python_and_c():
    assert len(python_keys()) == 18
    assert defined("SO8T_KV_") == python_keys()


def test_tensor_names_are_the_same_in_python_and_c():
    c = defined("SO8T_TENSOR_")
    assert format.Tensors.GENERATOR == "blk.{layer}." + c["LAYER_GEN"].replace("%s", "{name}")
    assert format.Tensors.ROTATION == "blk.{layer}." + c["LAYER_ROT"].replace("%s", "{name}")
    assert format.Tensors.OUT_GENERATOR == "so8t_out_gen." + c["OUT_GEN"]
    assert format.Tensors.HEAD_WEIGHT == "so8t_head." + c["WEIGHT"].replace("%s", "{name}")
    assert format.Tensors.HEAD_BIAS == "so8t_head." + c["BIAS"].replace("%s", "{name}")
    assert format.Tensors.STEM_WEIGHT == "so8t_stem." + c["WEIGHT"].replace("%s", "{stem}")
    assert format.Tensors.STEM_BIAS == "so8t_stem." + c["BIAS"].replace("%s", "{stem}")
    assert format.Tensors.STEM_NORM == "so8t_stem." + c["NORM"].replace("%s", "{stem}")


def test_sites_and_version_are_the_same_in_python_and_c():
    assert set(defined("SO8T_SITE_").values()) == set(format.SITES)
    assert int(re.search(r"#define SO8T_FORMAT_VERSION (\d+)", HEADER)[1]) == format.FORMAT_VERSION


def test_the_format_page_names_every_key():
    page = (ROOT / "docs/format.md").read_text()
    missing = [key for key in python_keys().values() if key.replace("%s", "NAME") not in page]
    # head_kv_representation and the like stand on lines of their own
    assert not missing
