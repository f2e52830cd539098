"""Hugging Face datasets are saved to s3:// URLs, loaded from there, and streamed.

python examples/huggingface_datasets.py s3://bucket/folder
"""

import sys

import datasets


def main(root: str) -> None:
    """Save a dataset, and load it completely and as a stream."""
    made = datasets.Dataset.from_dict({"text": [f"sample {index}" for index in range(100)]})
    made.save_to_disk(f"{root}/dataset")
    made.to_parquet(f"{root}/parquet/part.parquet")

    loaded = datasets.load_from_disk(f"{root}/dataset")
    streamed = datasets.load_dataset("parquet", data_files=f"{root}/parquet/*.parquet", split="train", streaming=True)
    print(f"{len(loaded)} loaded, the last of them {loaded[-1]['text']!r}")
    print(f"the first of the stream: {next(iter(streamed))['text']!r}")


if __name__ == "__main__":
    main(sys.argv[1])
