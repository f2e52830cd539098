"""FirstAttempt: a failed request that botocore takes for its own first attempt.

So botocore decides on retries, waits and errors as for any request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiobotocore.awsrequest import AioAWSResponse

if TYPE_CHECKING:
    from fsspec_csx.s3.transport.pool import Transfer


class FirstAttempt:
    """A failed attempt at a request that was made without botocore.

    Args:
        transfer: of the client whose credentials signed it.
        outcome: its response, or its error.
    """

    def __init__(self, transfer: Transfer, outcome: AioAWSResponse | Exception) -> None:
        self._transfer = transfer
        self._outcome: AioAWSResponse | Exception | None = outcome

    def take(self, transfer: Transfer) -> AioAWSResponse | None:
        """Return the response, or raise the error, once; None for another client, whose credentials may be newer."""
        outcome, self._outcome = self._outcome, None
        if transfer is not self._transfer:
            return None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome
