"""universal_pathlib gives s3:// URLs the methods of pathlib.

python examples/universal_paths.py s3://bucket/folder
"""

import sys

from upath import UPath


def main(root: str) -> None:
    """Write, list, read and delete with path objects."""
    run = UPath(root) / "paths"
    (run / "step_1.txt").write_text("loss 0.5")
    (run / "step_2.txt").write_text("loss 0.25")
    for path in sorted(run.glob("*.txt"), key=str):
        print(path.name, path.read_text())
    (run / "step_1.txt").unlink()
    print("left:", [path.name for path in run.iterdir()])


if __name__ == "__main__":
    main(sys.argv[1])
