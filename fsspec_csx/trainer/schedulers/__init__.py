"""Schedulers by the names and the arguments of the Cerebras ModelZoo: what they set depends on the step alone."""

from fsspec_csx.trainer.schedulers.base import Scheduler
from fsspec_csx.trainer.schedulers.composed import ChainedScheduler, ScalePerParamLR, SequentialLR
from fsspec_csx.trainer.schedulers.cycles import CosineAnnealingLR, CosineAnnealingWarmRestarts, CyclicLR, OneCycleLR
from fsspec_csx.trainer.schedulers.decays import (
    ConstantLR,
    ConstantWD,
    CosineDecayLR,
    CosineDecayWD,
    ExponentialLR,
    InverseExponentialTimeDecayLR,
    InverseSquareRootDecayLR,
    LinearLR,
    LinearWD,
    MultiplicativeLR,
    MultiStepLR,
    PiecewiseConstantLR,
    PolynomialLR,
    StepLR,
)

ChainedLR = ChainedScheduler

__all__ = [
    "ChainedLR",
    "ChainedScheduler",
    "ConstantLR",
    "ConstantWD",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CosineDecayLR",
    "CosineDecayWD",
    "CyclicLR",
    "ExponentialLR",
    "InverseExponentialTimeDecayLR",
    "InverseSquareRootDecayLR",
    "LinearLR",
    "LinearWD",
    "MultiStepLR",
    "MultiplicativeLR",
    "OneCycleLR",
    "PiecewiseConstantLR",
    "PolynomialLR",
    "ScalePerParamLR",
    "Scheduler",
    "SequentialLR",
    "StepLR",
]
