"""The S3 filesystem that ``s3://`` opens, and its implementation."""
