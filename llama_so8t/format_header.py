"""`format` for C++: the text of ``csrc/model/so8t-format.h``, which `make format-header` writes.

``python -m llama_so8t.format_header`` prints it; `tests/test_format_twins.py` compares it with the file.
"""

from collections.abc import Iterable, Mapping

from llama_so8t import format

_TENSORS = {
    "LAYER_GENS": (format.Tensors.GENERATORS, 'after "blk.N." [28, n of all generators of the layer]'),
    "LAYER_GEN": (format.Tensors.GENERATOR, 'after "blk.N." [28, n], in files of version 1'),
    "LAYER_ROT": (format.Tensors.ROTATION, 'after "blk.N." [8, 8, n], element [j, i, b] = R_b[i][j]'),
    "OUT_GEN": (format.Tensors.OUT_GENERATOR, 'after "so8t_out_gen." [28, nb]'),
    "WEIGHT": (
        format.Tensors.HEAD_WEIGHT,
        'after "so8t_head." [n, labels], "so8t_stem." [n, inner], n: taps * d or inner',
    ),
    "BIAS": (format.Tensors.HEAD_BIAS, 'after "so8t_head." [labels], "so8t_stem." [inner]'),
    "NORM": (format.Tensors.STEM_NORM, 'after "so8t_stem." [inner]'),
    "ATTN_Q": (format.Tensors.STEM_ATTN_Q, 'after "so8t_stem." [n, n_head * head_dim = inner]'),
    "ATTN_K": (format.Tensors.STEM_ATTN_K, 'after "so8t_stem." [n, head_dim]'),
    "ATTN_V": (format.Tensors.STEM_ATTN_V, 'after "so8t_stem." [n, head_dim]'),
    "ATTN_OUTPUT": (format.Tensors.STEM_ATTN_OUTPUT, 'after "so8t_stem." [inner, inner]'),
}
"""Suffix of a tensor name in C++ -> the name that it ends, and where it stands."""

_PREFIXES = ("blk.{layer}.", "so8t_out_gen.", "so8t_head.", "so8t_stem.")
"""What llama.cpp adds to a suffix: the names of LLM_TENSOR_SO8T_* in its llama-arch.cpp."""


def header() -> str:
    """The whole file.

    Raises:
        ValueError: `format` has a name that C++ cannot have.
    """
    sites = format.SITES.values()
    generators = [(generator.name, site.name) for site in sites for generator in site.generators]
    rotations = [rotation for site in sites for rotation in site.rotations]
    stems = [form for form in format.HEAD_FORMS.values() if form.stem]
    (without_stem,) = (form.activation for form in format.HEAD_FORMS.values() if not form.stem)
    parts = [
        "#pragma once",
        "#include <cstdint>",
        "// Names and rows of the GGUF format (docs/format.md), from llama_so8t/format.py: `make format-header`\n"
        "// writes this file. Do not edit it.",
        "// clang-format off",
        f"#define SO8T_FORMAT_VERSION {format.FORMAT_VERSION}\n"
        f"#define SO8T_MAX_LABELS     {format.MAX_LABELS} // of a head\n"
        f"#define SO8T_MAX_DEBOUNCE   {format.MAX_DEBOUNCE}\n"
        f"#define SO8T_TAP_FINAL_NORM ({format.FINAL_NORM})\n"
        f'#define SO8T_HEADS_TYPE     "{format.HEADS_TYPE}" // general.type of a heads file\n'
        f"#define SO8T_TAP_NORM_EPS   {format.TAP_NORM_EPS}f",
        "// keys; those of verdict heads, HEAD_*, keep the literal prefix so8t. in every architecture\n" + _keys(),
        "// keys of a head: what stands after its name, and the first version that has it; any other is an error\n"
        "struct so8t_head_key_row {\n    const char * field;\n    uint32_t     since;\n};\n\n"
        "inline constexpr so8t_head_key_row so8t_head_key_rows[] = "
        + _rows((f'"{key.field}"', str(key.since)) for key in format.HEAD_KEYS.values()),
        "// tensors, always F32. The part before the first dot is registered in llama-arch (LLM_TENSOR_SO8T_*),\n"
        "// the suffixes below follow it.\n" + _tensors(),
        "// how many matrices a rotation has: one for each block of 8 of the hidden vector, or one for all of them;\n"
        "// one for each group of 8 attention heads; one for each head or key-value head, in its representation\n"
        + _enum("so8t_per", "PER", format.PER),
        "// sites inside a layer, in the order of the data flow\n" + _enum("so8t_site", "SITE", format.SITES),
        "inline constexpr const char * so8t_site_names[] = " + _names(format.SITES),
        "// generators of a layer, in the order in which they stand in its one tensor\n"
        + _enum("so8t_generator_index", "GENERATOR", (name for name, _ in generators)),
        "struct so8t_generator_row {\n    const char * name;\n    so8t_site    site;\n};\n\n"
        "inline constexpr so8t_generator_row so8t_generator_rows[] = "
        + _rows((f'"{name}"', _enumerator("SITE", site)) for name, site in generators),
        "// rotation tensors of a layer, in the order in which they act, and the generators that they are made from\n"
        + _enum("so8t_rotation_index", "ROTATION", (rotation.name for rotation in rotations)),
        "struct so8t_rotation_row {\n    const char *         name;\n    so8t_generator_index generator;\n"
        "    so8t_per             per;\n};\n\n"
        "inline constexpr so8t_rotation_row so8t_rotation_rows[] = "
        + _rows((f'"{r.name}"', _enumerator("GENERATOR", r.generator), _enumerator("PER", r.per)) for r in rotations),
        "// weights of a layer into which a rotation is folded, and the generator that the rotation is made from\n"
        "struct so8t_folded_row {\n    const char *         weight;\n    so8t_generator_index generator;\n};\n\n"
        "inline constexpr so8t_folded_row so8t_folded_rows[] = "
        + _rows(
            (f'"{format.LINEAR_NAMES[linear]}.weight"', _enumerator("GENERATOR", rotation.generator))
            for rotation in rotations
            for linear in (*rotation.before, *rotation.after)
        ),
        "// base families: X(name, whether it has a norm after q and k, {type, parameters} of its known sizes...)\n"
        + _macro("SO8T_FAMILIES", (_family(family) for family in format.FAMILIES.values())),
        "// stems: X(activation, form, whether there is a norm); a head without a stem has the activation below\n"
        + _macro(
            "SO8T_STEM_FORMS",
            (f"X({_name(form.activation)}, {form.form.upper()}, {_bool(form.norm)})" for form in stems),
        ),
        f'#define SO8T_ACTIVATION_WITHOUT_STEM "{without_stem}"',
        "// values of enum llama_so8t_action; of enum llama_so8t_scope, less one; of enum llama_so8t_rule\n"
        "inline constexpr const char * so8t_action_names[] = " + _names(format.ACTIONS),
        "inline constexpr const char * so8t_scope_names[] = " + _names(format.SCOPES),
        "inline constexpr const char * so8t_rule_names[] = " + _names(format.RULES),
        "// values of enum llama_so8t_form, of enum llama_so8t_tap_norm, of enum llama_so8t_link\n"
        "inline constexpr const char * so8t_form_names[] = " + _names(format.FORMS),
        "inline constexpr const char * so8t_tap_norm_names[] = " + _names(format.TAP_NORMS),
        "inline constexpr const char * so8t_link_names[] = " + _names(format.LINKS),
        "// values of enum llama_so8t_aggregation, of enum llama_so8t_prompt_aggregation\n"
        "inline constexpr const char * so8t_aggregation_names[] = " + _names(format.AGGREGATIONS),
        "inline constexpr const char * so8t_prompt_aggregation_names[] = " + _names(format.PROMPT_AGGREGATIONS),
        "// clang-format on",
    ]
    return "\n\n".join(parts) + "\n"


def _keys() -> str:
    keys = {name: value for name, value in vars(format.Keys).items() if name.isupper()}
    return _defines({f"SO8T_KV_{name}": value.replace("{name}", "%s") for name, value in keys.items()})


def _tensors() -> str:
    suffixes = {name: (_suffix(full), where) for name, (full, where) in _TENSORS.items()}
    width = max(len(suffix) for suffix, _ in suffixes.values())
    return _defines(
        {f"SO8T_TENSOR_{name}": suffix for name, (suffix, _) in suffixes.items()},
        {
            f"SO8T_TENSOR_{name}": " " * (width - len(suffix)) + f" // {where}"
            for name, (suffix, where) in suffixes.items()
        },
    )


def _suffix(name: str) -> str:
    prefix = next(prefix for prefix in _PREFIXES if name.startswith(prefix))
    return name.removeprefix(prefix).replace("{name}", "%s").replace("{stem}", "%s")


def _defines(values: Mapping[str, str], comments: Mapping[str, str] | None = None) -> str:
    width = max(map(len, values))
    return "\n".join(
        f'#define {name:<{width}} "{value}"{comments[name] if comments else ""}' for name, value in values.items()
    )


def _name(text: str) -> str:
    if not text.isidentifier():
        raise ValueError(f"format: found the name {text!r}, expected letters, digits and _ for C++")
    return text


def _enumerator(prefix: str, name: str) -> str:
    return f"SO8T_{prefix}_{_name(name).upper()}"


def _enum(name: str, prefix: str, names: Iterable[str]) -> str:
    lines = [f"    {_enumerator(prefix, entry)},\n" for entry in (*names, "count")]
    return f"enum {name} {{\n{''.join(lines)}}};"


def _names(names: Iterable[str]) -> str:
    return "{" + ", ".join(f'"{name}"' for name in names) + "};"


def _rows(rows: Iterable[tuple[str, ...]]) -> str:
    return "{\n" + "".join(f"    {{{', '.join(row)}}},\n" for row in rows) + "};"


def _macro(name: str, entries: Iterable[str]) -> str:
    return f"#define {name}(X) \\\n" + " \\\n".join(f"    {entry}" for entry in entries)


def _bool(value: bool) -> str:
    return "true" if value else "false"


def _family(family: format.Family) -> str:
    exponents = {"M": "e6", "B": "e9"}
    sizes = [f"{{LLM_TYPE_{size.replace('.', '_')}, {size[:-1]}{exponents[size[-1]]}}}" for size in family.sizes]
    return f'X("{family.name}", {_bool(family.qk_norm)}, {", ".join(sizes)})'


if __name__ == "__main__":
    print(header(), end="")
