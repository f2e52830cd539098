"""A training loop with the names of the Cerebras ModelZoo and checkpoints at any fsspec URL."""

from fsspec_csx.trainer.callback import Callback
from fsspec_csx.trainer.checkpoint_retention import KeepBestCheckpoints, KeepNCheckpoints
from fsspec_csx.trainer.checkpointing import Checkpoint
from fsspec_csx.trainer.flags import GlobalFlags, ScopedTrainFlags, ScopedValidateFlags
from fsspec_csx.trainer.loggers import Logger, Logging, ProgressLogger, TensorBoardLogger, WandbLogger
from fsspec_csx.trainer.loop import EarlyExit, TrainingLoop, ValidationLoop
from fsspec_csx.trainer.monitoring import CheckLoss, ComputeNorm, ModelEvalMetrics, RateProfiler, TimeRemaining
from fsspec_csx.trainer.partial_states import LoadCheckpointStates, SaveCheckpointState
from fsspec_csx.trainer.precision import MixedPrecision, Precision
from fsspec_csx.trainer.trainer import Trainer

__all__ = [
    "Callback",
    "CheckLoss",
    "Checkpoint",
    "ComputeNorm",
    "EarlyExit",
    "GlobalFlags",
    "KeepBestCheckpoints",
    "KeepNCheckpoints",
    "LoadCheckpointStates",
    "Logger",
    "Logging",
    "MixedPrecision",
    "ModelEvalMetrics",
    "Precision",
    "ProgressLogger",
    "RateProfiler",
    "SaveCheckpointState",
    "ScopedTrainFlags",
    "ScopedValidateFlags",
    "TensorBoardLogger",
    "TimeRemaining",
    "Trainer",
    "TrainingLoop",
    "ValidationLoop",
    "WandbLogger",
]
