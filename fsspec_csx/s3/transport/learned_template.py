"""LearnedTemplate: what requests that are alike have in common, learned from the first of them."""

from __future__ import annotations

import asyncio

from fsspec_csx.s3.transport.request_template import ReadTemplate

# After so many times that its requests did not succeed, or none could be made, botocore makes all.
FAILURES = 5


class LearnedTemplate:
    """The template of requests that are begun at different times."""

    def __init__(self) -> None:
        self._failures = 0
        self._made: asyncio.Future[ReadTemplate | None] | None = None

    @property
    def unknown(self) -> bool:
        """Whether the next request should be the one that it is learned from; so in a forked process, too."""
        return self._made is None or self._made.get_loop() is not asyncio.get_running_loop()

    def begin(self) -> None:
        """Let others wait until it is known."""
        self._made = asyncio.get_running_loop().create_future()

    def settle(self, template: ReadTemplate | None) -> None:
        """Note the template, or that none could be learned."""
        assert self._made is not None
        self._made.set_result(template)
        if template is None:
            self._forget()

    async def known(self) -> ReadTemplate | None:
        """The template, once it is known; None if there is none."""
        assert self._made is not None
        return await asyncio.shield(self._made)

    def failed(self, template: ReadTemplate) -> None:
        """Note that botocore has made a request that the template could not: its credentials may have expired."""
        if self._made is not None and self._made.done() and self._made.result() is template:
            self._forget()

    def _forget(self) -> None:
        self._failures += 1
        if self._failures < FAILURES:
            self._made = None
        else:
            self.begin()
            assert self._made is not None
            self._made.set_result(None)
