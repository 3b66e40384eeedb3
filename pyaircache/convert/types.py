"""The types that weights can be written as."""

from __future__ import annotations

from ..checks import one_of

DIRECT = ("f32", "f16", "bf16", "q8_0")
"""What the converter writes itself."""

_QUANTISED = (
    *("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_0", "q4_1", "q4_k_s", "q4_k_m", "q5_0", "q5_1", "q5_k_s", "q5_k_m"),
    *("q6_k", "iq4_nl", "iq4_xs"),
)
"""What llama-quantize makes without an importance matrix."""

TEXT_TYPES = (*DIRECT, *_QUANTISED)
MMPROJ_TYPES = DIRECT


def text_type(value: str) -> str:
    """A type of the language model's weights, in lower case.

    Raises:
        ArgumentError: It is none.
    """
    return one_of("outtype", _lower(value), TEXT_TYPES)


def mmproj_type(value: str) -> str:
    """A type of the projector's weights, in lower case.

    Raises:
        ArgumentError: It is none.
    """
    return one_of("mmproj_outtype", _lower(value), MMPROJ_TYPES)


def unquantised(source_types: set[str]) -> str:
    """What to write before llama-quantize reads it: the type that loses nothing of the weights as they are.

    Args:
        source_types: those of the safetensors: "BF16", "F32", ...
    """
    if "F32" in source_types:
        return "f32"
    return "f16" if "F16" in source_types and "BF16" not in source_types else "bf16"


def _lower(value: str) -> str:
    return value.lower() if isinstance(value, str) else value
