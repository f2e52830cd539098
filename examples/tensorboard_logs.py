"""TensorBoard logs at an S3 URL, written by torch and read back.

python examples/tensorboard_logs.py s3://bucket/folder
tensorboard --logdir csx://bucket/folder/tensorboard
"""

import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter


def main(root: str) -> None:
    """Log a loss, and read the log."""
    # csx:// is another name for s3://. For s3:// TensorBoard would use boto3, if it is installed.
    folder = f"csx://{root.removeprefix('s3://')}/tensorboard"
    with SummaryWriter(folder) as writer:
        for step in range(10):
            writer.add_scalar("loss", 1 / (1 + step), step)

    events = EventAccumulator(folder).Reload()
    print("losses:", [round(event.value, 2) for event in events.Scalars("loss")])


if __name__ == "__main__":
    main(sys.argv[1])
