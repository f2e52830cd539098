"""An object of 6 GiB copied by the server; takes minutes, and 13 GiB of disk."""

from __future__ import annotations

import os
import random
from pathlib import Path

import fsspec
import pytest
from checkpoints import MIB
from commands import DONE, cszoo

from fsspec_csx.testing import LocalS3

PART, PARTS = 32 * MIB, 192


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_six_gib(tmp_path: Path) -> None:
    """It is copied to another bucket, moved there, and is the same wherever it is looked at."""
    with LocalS3(directory=tmp_path) as server:
        fs = fsspec.filesystem("s3", **server.storage_options(), use_listings_cache=False)
        data = os.urandom(PART)
        fs.pipe_file("large/part", data)
        named = {"Bucket": "large", "Key": "x.mdl"}
        upload = {**named, "UploadId": fs.call_s3("create_multipart_upload", **named)["UploadId"]}
        parts = []
        for number in range(1, PARTS + 1):
            answer = fs.call_s3("upload_part_copy", **upload, PartNumber=number, CopySource="large/part")
            parts.append({"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]})
        fs.call_s3("complete_multipart_upload", **upload, MultipartUpload={"Parts": parts})
        for verb, source, target in (("copy", "large/x.mdl", "other/"), ("move", "other/x.mdl", "other/moved.mdl")):
            done = cszoo(verb, f"s3://{source}", f"s3://{target}", environment=server.environment(), timeout=1500)
            assert done.returncode == DONE, done.stderr
        assert fs.find("other") == ["other/moved.mdl"]
        assert fs.size("other/moved.mdl") == PARTS * PART
        generator = random.Random(1)
        for start in [0, (PARTS - 1) * PART, *(generator.randrange(PARTS - 1) * PART for _ in range(10))]:
            assert fs.cat_file("other/moved.mdl", start=start, end=start + PART) == data
