"""A pyarrow dataset at an s3:// URL, partitioned by folder; a query reads only the files and columns that it needs.

python examples/pyarrow_dataset.py s3://bucket/folder
"""

import sys

import fsspec
import pyarrow as pa
import pyarrow.dataset as ds


def main(root: str) -> None:
    """Write a partitioned dataset, and query it."""
    filesystem, folder = fsspec.url_to_fs(f"{root}/runs")
    table = pa.table({"run": ["a", "b"] * 50, "step": range(100), "loss": [1 / (1 + step) for step in range(100)]})
    ds.write_dataset(
        table,
        folder,
        filesystem=filesystem,
        format="parquet",
        partitioning=ds.partitioning(pa.schema([("run", pa.string())]), flavor="hive"),
    )

    dataset = ds.dataset(folder, filesystem=filesystem, partitioning="hive")
    found = dataset.to_table(columns=["loss"], filter=(ds.field("run") == "b") & (ds.field("step") >= 90))
    print(f"{len(dataset.files)} files, {found.num_rows} rows of run b from step 90 on")


if __name__ == "__main__":
    main(sys.argv[1])
