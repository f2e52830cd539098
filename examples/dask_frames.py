"""dask reads and writes tables and text in many parts at s3:// URLs.

python examples/dask_frames.py s3://bucket/folder
"""

import sys

import dask
import dask.bag
import dask.dataframe
import pandas as pd


def main(root: str) -> None:
    """Write a table and a bag in parts, and compute on the stored data."""
    dask.config.set(scheduler="threads")
    table = pd.DataFrame({"run": ["a", "b"] * 50, "loss": range(100)})
    dask.dataframe.from_pandas(table, npartitions=4).to_parquet(f"{root}/table")
    dask.bag.range(100, npartitions=4).map(str).to_textfiles(f"{root}/lines/*.txt.gz")

    means = dask.dataframe.read_parquet(f"{root}/table").groupby("run")["loss"].mean().compute()
    print("means of the runs:", means.to_dict())
    print("sum of the lines:", dask.bag.read_text(f"{root}/lines/*.txt.gz").map(int).sum().compute())


if __name__ == "__main__":
    main(sys.argv[1])
