"""What users ask for: one frozen dataclass a verb. No torch and no file here, so that `hsivi
--help` is instant.
"""

from .boosting import BOOST_OUT, DRAWING, BoostConfig, decided
from .inference import FIRST_MARK, TARGETS, InferConfig
from .options import (
    COUNTS,
    DATA_ROOT,
    DTYPES,
    FORCE,
    ORIGIN,
    REVISION,
    SEEDS,
    SUBFOLDER,
    VARIANT,
    are_settings,
    flag_of,
    is_whole,
    option,
    option_fields,
    parse_numbers,
)
from .recipe import (
    MANY,
    PLANNED,
    PRESETS,
    RECIPE,
    REGRESSED,
    choices_in,
    of_nfe,
    pinned,
    settings_of,
    solved,
)
from .training import OWN, TrainConfig
from .viewing import CompareConfig, FidConfig, SampleConfig

__all__ = [
    "BOOST_OUT",
    "COUNTS",
    "DATA_ROOT",
    "DRAWING",
    "DTYPES",
    "FIRST_MARK",
    "FORCE",
    "MANY",
    "ORIGIN",
    "OWN",
    "PLANNED",
    "PRESETS",
    "RECIPE",
    "REGRESSED",
    "REVISION",
    "SEEDS",
    "SUBFOLDER",
    "TARGETS",
    "VARIANT",
    "BoostConfig",
    "CompareConfig",
    "FidConfig",
    "InferConfig",
    "SampleConfig",
    "TrainConfig",
    "are_settings",
    "choices_in",
    "decided",
    "flag_of",
    "is_whole",
    "of_nfe",
    "option",
    "option_fields",
    "parse_numbers",
    "pinned",
    "settings_of",
    "solved",
]
