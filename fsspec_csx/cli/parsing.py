"""The parser of ``cszoo`` and of each of its verbs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from fsspec_csx.storage.paths import redacted


class Parser(argparse.ArgumentParser):
    """An argument parser that reserves words for positional arguments, and prints no password."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> Any:
        """Parse like argparse, but in ``--keys a b SRC DST`` the last two words are source and target."""
        return super().parse_known_args(self._separated([*(sys.argv[1:] if args is None else args)]), namespace)

    def error(self, message: str) -> NoReturn:
        super().error(redacted(message))

    def _separated(self, words: list[str]) -> list[str]:
        """Move the words that positional arguments need to the end, after ``--``."""
        options = self._option_string_actions
        if not any(action.nargs in ("+", "*") for action in options.values()):
            return words
        required = sum(action.nargs is None for action in self._get_positional_actions())
        before, after = words, list[str]()
        if "--" in words:
            before, after = words[: words.index("--")], words[words.index("--") + 1 :]
        many: list[int] = []  # indices of the words of options with any number of values
        free, action = len(after), None
        for index, word in enumerate(before):
            if word.startswith("-") and len(word) > 1:
                action = options.get(word)
            elif action is not None and action.nargs in ("+", "*"):
                many.append(index)
            elif action is not None and action.nargs is None:
                action = None  # the option takes only one value
            else:
                free += 1
        missing = max(0, required - free)
        # The option keeps its first word.
        taken = many[max(1, len(many) - missing) :] if missing else []
        if not taken:
            return words
        kept = [word for index, word in enumerate(before) if index not in taken]
        return [*kept, "--", *(before[index] for index in taken), *after]
