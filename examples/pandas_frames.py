"""pandas writes and reads CSV and Parquet at s3:// URLs.

python examples/pandas_frames.py s3://bucket/folder
"""

import sys

import pandas as pd


def main(root: str) -> None:
    """Write a table in both formats, and read parts of it."""
    table = pd.DataFrame({"step": range(100), "loss": [1 / (1 + step) for step in range(100)]})
    table.to_csv(f"{root}/loss.csv.gz", index=False)
    # With storage_options, even empty ones, pandas opens Parquet with fsspec, otherwise with pyarrow's S3 client.
    table.to_parquet(f"{root}/loss.parquet", storage_options={})

    print(pd.read_csv(f"{root}/loss.csv.gz").tail(1))
    late = pd.read_parquet(f"{root}/loss.parquet", columns=["loss"], filters=[("step", ">=", 90)], storage_options={})
    print(f"mean of the last {len(late)} losses: {late['loss'].mean():.4f}")


if __name__ == "__main__":
    main(sys.argv[1])
