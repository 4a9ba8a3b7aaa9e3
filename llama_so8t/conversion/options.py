"""What a conversion is asked for."""

from dataclasses import dataclass
from pathlib import Path

PLAIN_OUTTYPES = ("f32", "f16", "bf16", "q8_0")
"""One type for every matrix: no build of llama.cpp is needed."""

OUTTYPES = (
    *PLAIN_OUTTYPES,
    *("q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "q4_1", "q4_0", "iq4_nl", "iq4_xs"),
    *("q3_k_l", "q3_k_m", "q3_k_s", "iq3_m", "iq3_s", "iq3_xs", "iq3_xxs", "q2_k", "q2_k_s"),
    *("iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s", "tq2_0", "tq1_0"),
)
"""What `llama-quantize` offers for dense models, in its order of size."""

ROTATION_MODES = ("fold", "explicit")
ARCHITECTURES = ("so8t", "stock")

LORA_TRAINED_ON = ("model", "base")
"""`checkpoint.lora.TRAINED_ON`, for the command line, which imports no numpy."""


@dataclass(frozen=True)
class ConvertOptions:
    """Options of `so8t convert`.

    ``outfile`` None means ``MODEL/NAME-ARCH-OUTTYPE.gguf``. ``base`` replaces the base that an adapter names.
    ``rotations``: ``fold`` absorbs every site that can be absorbed, ``explicit`` leaves all but out in the
    graph. ``arch``: ``stock`` writes the base's own architecture, everything folded, and the heads beside it.
    ``merge_lora``: directory of a LoRA adapter of PEFT, to be added to the weights before anything is folded;
    ``lora_trained_on``: one of `LORA_TRAINED_ON`, None where the model leaves no choice.
    ``drop_sites``: sites to leave out of a stock file that cannot be folded. ``keep``: modules that stay at 16
    bit. ``tensor_types``: ``REGEX=TYPE`` as `llama-quantize --tensor-type` takes them. ``imatrix``: a GGUF file of
    `llama-imatrix`. ``split_max_size``: bytes of tensors per file. ``threads`` None means one per core.
    """

    model: Path
    outfile: Path | None = None
    outtype: str = "q8_0"
    rotations: str = "fold"
    arch: str = "so8t"
    base: str | None = None
    merge_lora: Path | None = None
    lora_trained_on: str | None = None
    model_name: str | None = None
    drop_sites: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    tensor_types: tuple[str, ...] = ()
    imatrix: Path | None = None
    split_max_size: int | None = None
    threads: int | None = None
    allow_nonfinite: bool = False
    progress: bool = True
