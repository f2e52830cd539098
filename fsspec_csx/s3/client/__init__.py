"""One request to S3: the session that signs it, the checks of its answer, its retries, and its errors."""
