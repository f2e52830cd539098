"""The responses of servers that discard uploads."""

from __future__ import annotations

from target import BUCKET

ETAG = "0123456789abcdef0123456789abcdef"
_XML = '<?xml version="1.0" encoding="UTF-8"?><{0} xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{1}</{0}>'
_NAME = f"<Bucket>{BUCKET}</Bucket><Key>key</Key>"
CREATED = _XML.format("InitiateMultipartUploadResult", f"{_NAME}<UploadId>upload</UploadId>")
COMPLETED = _XML.format("CompleteMultipartUploadResult", f"{_NAME}<ETag>&quot;{ETAG}-2&quot;</ETag>")
COPIED = _XML.format("CopyObjectResult", f"<ETag>&quot;{ETAG}&quot;</ETag>")
DELETED = _XML.format("DeleteResult", "")
LISTED = _XML.format("ListBucketResult", f"<Name>{BUCKET}</Name><KeyCount>0</KeyCount><IsTruncated>false</IsTruncated>")
