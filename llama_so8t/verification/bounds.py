"""How far a correct conversion to a ggml type may be from the float32 values."""

from dataclasses import dataclass

HALF_STEP_F16 = 2.0**-25
"""Half the distance of the smallest float16 values: rounding error of a block's scale, however small it is."""


@dataclass(frozen=True)
class Bound:
    """Errors allowed in a tensor of one type.

    ``largest``: of one value, as a share of the largest value of its block (of itself, where a block is one
    value). ``rms``: of the whole tensor, as a share of its RMS. ``levels``: factor of the scale in the largest
    value of a block, for blocks whose scale hardly fits float16.
    """

    largest: float
    rms: float
    levels: int = 0

    def weighted(self) -> "Bound":
        """The bound of a quantization by importance, which may give up values of none."""
        return Bound(max(self.largest, 1.3), max(self.rms, 0.8), self.levels)


BOUNDS = {
    "F32": Bound(0.0, 0.0),
    "F16": Bound(2.0**-11, 2.0**-11, 1),
    "BF16": Bound(2.0**-8, 2.0**-8),
    "Q8_0": Bound(0.0045, 0.023, 127),
    "Q6_K": Bound(0.04, 0.045, 128 * 32),
    "Q5_K": Bound(0.08, 0.075, 63 * 32),
    "Q5_1": Bound(0.045, 0.08, 32),
    "Q5_0": Bound(0.08, 0.12, 16),
    "Q4_K": Bound(0.15, 0.14, 63 * 16),
    "Q4_1": Bound(0.09, 0.16, 16),
    "Q4_0": Bound(0.16, 0.20, 8),
    "IQ4_NL": Bound(0.17, 0.16, 127),
    "IQ4_XS": Bound(0.18, 0.16, 32 * 127),
    "Q3_K": Bound(0.34, 0.26, 32 * 4),
    "IQ3_S": Bound(2.8, 1.2, 32 * 16),
    "IQ3_XXS": Bound(1.8, 0.75, 32 * 64),
    "Q2_K": Bound(0.65, 0.55, 15 * 4),
    "IQ2_S": Bound(1.3, 1.2, 16 * 43),
    "IQ2_XS": Bound(2.8, 1.0, 16 * 43),
    "IQ2_XXS": Bound(3.0, 1.2, 16 * 43),
    "IQ1_M": Bound(12.0, 1.2, 16),
    "IQ1_S": Bound(12.0, 1.2, 16),
    "TQ2_0": Bound(0.51, 1.0, 1),
    "TQ1_0": Bound(0.51, 1.0, 1),
}
"""
Type -> bound. 16 bit and Q8_0 by their arithmetic (half a step is 1/254 of the largest value, and the scale itself is
rounded to float16); the others 1.25 times or more of the worst that libggml gave on normal, uniform, heavy-tailed,
shifted, sparse and outlier values, which `tests/native/test_verify_native.py` asks again.
"""

LOGITS = {"F32": 1e-3, "F16": 2e-2, "BF16": 5e-2}
LOGITS_QUANTIZED = 0.25
"""
Coarsest type of the weights -> RMS difference allowed between the logits of llama.cpp and of the reference on the
same weights, as a share of the logits' RMS. llama.cpp rounds activations to the type of the weights, or to 8 bits.
"""
