"""What users ask for: one frozen dataclass a verb. No torch and no file here, so that `hsivi
--help` is instant.
"""

from .inference import InferConfig
from .options import (
    DATA_ROOT,
    DTYPES,
    ORIGIN,
    REVISION,
    SEEDS,
    SUBFOLDER,
    VARIANT,
    check_options,
    flag_of,
    option,
    parse_numbers,
)
from .training import PRESETS, REGRESSED, SOLVED, TrainConfig, of_nfe
from .viewing import CompareConfig, FidConfig, SampleConfig

__all__ = [
    "DATA_ROOT",
    "DTYPES",
    "ORIGIN",
    "PRESETS",
    "REGRESSED",
    "REVISION",
    "SEEDS",
    "SOLVED",
    "SUBFOLDER",
    "VARIANT",
    "CompareConfig",
    "FidConfig",
    "InferConfig",
    "SampleConfig",
    "TrainConfig",
    "check_options",
    "flag_of",
    "of_nfe",
    "option",
    "parse_numbers",
]
