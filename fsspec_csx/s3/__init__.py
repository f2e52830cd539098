"""The S3 filesystem: what ``s3://`` opens, and the engine below it."""
