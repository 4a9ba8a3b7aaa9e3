"""`so8t convert`: an SO8T checkpoint or adapter becomes a GGUF file."""

import argparse
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llama_so8t.cli.values import count, size, words
from llama_so8t.conversion.options import ARCHITECTURES, LORA_TRAINED_ON, OUTTYPES, ROTATION_MODES, ConvertOptions
from llama_so8t.errors import ConfigError

if TYPE_CHECKING:
    from llama_so8t.conversion.convert import Plan
    from llama_so8t.sidecars.config_yaml import ConfigFile

HELP = "convert an SO8T checkpoint or adapter to GGUF"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `so8t convert`."""
    parser.add_argument(
        "model", type=Path, nargs="?", help="directory of an SO8T checkpoint or adapter (default: that of --config)"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML file with options; those of the command line come first"
    )
    _add_model_options(parser)
    _add_tensor_options(parser)
    _add_work_options(parser)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    """What is written: name, type, rotations, architecture, base."""
    parser.add_argument(
        "--outfile", type=Path, metavar="FILE", help="file to write (default: MODEL/NAME-ARCH-OUTTYPE.gguf)"
    )
    parser.add_argument(
        "--outtype",
        type=str.lower,
        choices=OUTTYPES,
        metavar="TYPE",
        help=f"type of the weights: {', '.join(OUTTYPES)} (default: q8_0; of a LoRA adapter f32)",
    )
    parser.add_argument(
        "--rotations",
        choices=ROTATION_MODES,
        default="fold",
        help="absorb the rotations into the weights where that is exact, or leave them in the graph (default: fold)",
    )
    parser.add_argument(
        "--arch",
        choices=ARCHITECTURES,
        default="so8t",
        help="so8t; or stock: the base's own architecture with everything folded, for programs without SO8T, "
        "and the heads in NAME.heads.gguf (default: so8t)",
    )
    parser.add_argument(
        "--drop-sites", type=words, default=(), metavar="SITES", help="with --arch stock: leave these sites out"
    )
    parser.add_argument("--base", metavar="MODEL", help="base model of an adapter, instead of the one it names")
    parser.add_argument("--model-name", metavar="NAME", help="general.name of the file")
    adapters = parser.add_mutually_exclusive_group()
    adapters.add_argument(
        "--lora",
        type=Path,
        metavar="DIR",
        help="write no model, but this LoRA adapter of PEFT, for use with the file that the same options make of MODEL",
    )
    adapters.add_argument(
        "--merge-lora", type=Path, metavar="DIR", help="add this LoRA adapter of PEFT to the weights of the model first"
    )
    parser.add_argument(
        "--lora-trained-on",
        choices=LORA_TRAINED_ON,
        help="what it was trained on: MODEL, beside its rotations, or the base, whose function a compensated adapter "
        "leaves as it was (default: model; of a compensated adapter it must be said)",
    )


def _add_tensor_options(parser: argparse.ArgumentParser) -> None:
    """Tensors that get another type, and how the file is cut."""
    parser.add_argument(
        "--keep",
        type=words,
        metavar="MODULES",
        help="comma-separated modules that stay at 16 bit, for example lm_head; heads and rotations are F32 always",
    )
    parser.add_argument(
        "--tensor-type",
        action="append",
        default=[],
        metavar="REGEX=TYPE",
        help="another type for the tensors whose GGUF name matches, as in llama-quantize; repeatable",
    )
    parser.add_argument("--imatrix", type=Path, metavar="FILE", help="importance matrix made by llama-imatrix")
    parser.add_argument(
        "--split-max-size",
        type=size,
        metavar="N[M|G]",
        help="split into files of at most this many bytes; M and G: 10^6 and 10^9",
    )


def _add_work_options(parser: argparse.ArgumentParser) -> None:
    """How the work is done, and what is done beside it."""
    parser.add_argument("--threads", type=count, metavar="N", help="cores to use (default: all)")
    parser.add_argument(
        "--allow-nonfinite", action="store_true", help="write NaN and infinity instead of refusing them"
    )
    parser.add_argument("--no-modelfile", action="store_true", help="write no Modelfile for Ollama beside the file")
    parser.add_argument("--verify", action="store_true", help="read the file again and compare it with the model")
    parser.add_argument(
        "--sidecars", type=Path, metavar="DIR", help="also write metadata, int8 weights, scales and tokenizer to DIR"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be written, and write nothing")
    parser.add_argument("--verbose", action="store_true", help="show the messages of llama.cpp's Python code")


def run(args: argparse.Namespace) -> int:
    """Runs `so8t convert`.

    Raises:
        ConfigError: no model is named, or --config is wrong.
        CheckpointError: the model cannot be read.
        ConversionError: it cannot be written as asked, or --verify found something wrong.
    """
    # here, not above: `so8t --help` must not need the llama.cpp tree
    from llama_so8t import upstream
    from llama_so8t.checkpoint.fields import check_fields
    from llama_so8t.conversion import convert
    from llama_so8t.format import unfitted_warning
    from llama_so8t.sidecars.config_yaml import ConfigFile, read_config_yaml
    from llama_so8t.sidecars.writing import write_sidecars

    upstream.set_verbose(args.verbose)
    config = read_config_yaml(args.config) if args.config else ConfigFile()
    model = args.model or config.model
    if model is None:
        raise ConfigError("no model is named: give its directory, or model.model_path in --config")
    for key in config.without_effect:
        print(f"note: {args.config}: {key} has no effect on a conversion", file=sys.stderr)
    if args.lora is not None:
        return _write_lora(args, config, model)
    planned = convert.plan(_options(args, config, model))
    check_fields(planned.checkpoint, config.expected)
    if planned.checkpoint.is_so8t and (unfitted := planned.checkpoint.unfitted_heads):
        print(unfitted_warning(unfitted), file=sys.stderr)
    if planned.options.drop_sites:
        from llama_so8t.verification import effect_of_dropped_sites

        sites = ", ".join(planned.options.drop_sites)
        print(f"without {sites}: {effect_of_dropped_sites(planned)}", file=sys.stderr)
    if args.dry_run:
        print(_table(planned))
        return 0
    convert.run(planned)
    for path in planned.paths:
        print(f"wrote {path} ({path.stat().st_size:,} bytes)")
    if not args.no_modelfile:
        _write_modelfile(planned)
    if args.sidecars:
        for path in write_sidecars(planned.checkpoint, args.sidecars, config.compression_level, progress=True):
            print(f"wrote {path} ({path.stat().st_size:,} bytes)")
    if args.verify:
        from llama_so8t.verification import render, verify

        report = verify(planned)
        print(render(report), flush=True)
        print(f"wrote {report.write()}")
        report.require_ok()
    return 0


def _write_lora(args: argparse.Namespace, config: "ConfigFile", model: Path) -> int:
    """Writes an adapter instead of a model."""
    from llama_so8t.conversion.lora import OUTTYPE, plan_lora, run_lora

    for option in ("verify", "sidecars"):
        if getattr(args, option):
            raise ConfigError(f"found --{option} beside --lora, expected it for a model only")
    options = replace(_options(args, config, model), outtype=args.outtype or OUTTYPE)
    planned = plan_lora(options, args.lora)
    if args.dry_run:
        print(f"would write {planned.path}: {len(planned.shard.tensors) // 2} pairs of A and B")
        return 0
    path = run_lora(planned)
    print(f"wrote {path} ({path.stat().st_size:,} bytes), for files with folded: {', '.join(planned.folded) or 'none'}")
    return 0


def _options(args: argparse.Namespace, config: "ConfigFile", model: Path) -> ConvertOptions:
    """The command line, and what it leaves to --config."""
    return ConvertOptions(
        model=model,
        outfile=args.outfile or config.outfile,
        outtype=args.outtype or config.outtype or "q8_0",
        rotations=args.rotations,
        arch=args.arch,
        base=args.base,
        merge_lora=args.merge_lora,
        lora_trained_on=args.lora_trained_on,
        model_name=args.model_name,
        drop_sites=args.drop_sites,
        keep=config.keep if args.keep is None else args.keep,
        tensor_types=tuple(args.tensor_type),
        imatrix=args.imatrix,
        split_max_size=args.split_max_size,
        threads=args.threads,
        allow_nonfinite=args.allow_nonfinite,
    )


def _write_modelfile(planned: "Plan") -> None:
    """A Modelfile beside the file; one that somebody else wrote stays."""
    from llama_so8t.modelfile import is_ours, write_modelfile

    first = planned.paths[0]
    outfile = first.with_name("Modelfile")
    if planned.is_split:
        print("note: no Modelfile, because Ollama takes single files", file=sys.stderr)
    elif outfile.exists() and not is_ours(outfile):
        print(f"note: {outfile} stays as it is; `so8t modelfile {first}` writes another one", file=sys.stderr)
    else:
        generation = planned.checkpoint.generation_config
        print(f"wrote {write_modelfile(first, outfile, generation_config=generation, replace=True)}")


def _table(planned: "Plan") -> str:
    """Tensors and bytes per type, and the files."""
    from llama_so8t.conversion.header import n_bytes

    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for tensor in planned.tensors:
        counts[tensor.dtype] += 1
        sizes[tensor.dtype] += n_bytes(tensor)
    lines = ["type        tensors           bytes"]
    lines += [f"{name:<10} {counts[name]:>8} {size:>15,}" for name, size in sizes.most_common()]
    lines.append(f"{'total':<10} {counts.total():>8} {sizes.total():>15,}")
    lines += [f"would write {path}" for path in planned.paths]
    return "\n".join(lines)
