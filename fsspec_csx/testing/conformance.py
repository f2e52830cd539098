"""A conformance suite: load returns what save accepts; a failed save leaves nothing behind, and keeps the old file.

It needs no pytest. To test a format and a filesystem:

    import fsspec_csx
    from fsspec_csx.testing.conformance import FormatConformance

    FormatConformance(fsspec_csx.save, fsspec_csx.load, "x.mdl").check("s3://bucket/folder")
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import fsspec
import torch
from fsspec.callbacks import Callback

from fsspec_csx.testing.example_values import KINDS, same

OLD = {"old": torch.arange(2.0)}
_LARGE = 8 * 2**20


class _Stop(Callback):  # type: ignore[misc]  # fsspec has no types
    """Fails a save when its first bytes are written."""

    def relative_update(self, inc: int = 1) -> None:
        if inc:
            msg = "Stopped by the conformance suite."
            raise InterruptedError(msg)


@dataclass(frozen=True)
class FormatConformance:
    """A way to save and load.

    Attributes:
        save: saves a state dict at a path; for ``check_interrupted`` it also takes a ``callback``.
        load: returns what was saved at a path.
        name: the last part of the path, with the format's suffix.
        returned: returns what load must return for a state dict.
        refused: the kinds that the format cannot hold; save raises a ValueError or TypeError that names the entry.
        kinds: the kinds to test, by name, as functions that make a value.
    """

    save: Callable[..., object]
    load: Callable[[str], Any]
    name: str
    returned: Callable[[Any], Any] = lambda state: state
    refused: Collection[str] = ()
    kinds: Mapping[str, Callable[[], Any]] = field(default_factory=lambda: KINDS)

    def check(self, root: str) -> None:
        """Run all checks below a path or URL.

        Raises:
            AssertionError: if a check fails; it lists all failures of that check.
        """
        self.check_kinds(f"{root}/kinds")
        self.check_refused(f"{root}/refused")
        self.check_interrupted(f"{root}/interrupted")

    def check_kinds(self, root: str) -> None:
        """Check that each kind loads unchanged, or is refused by the name of its entry with nothing left behind."""
        wrong = [f"{kind}: {flaw}" for kind in self.kinds for flaw in self.flaws(kind, root)]
        assert not wrong, "\n".join(wrong)

    def check_refused(self, root: str) -> None:
        """Check that after a refused save the old checkpoint stays, with nothing beside it."""
        path = f"{root}/{self.name}"
        self.save(OLD, path)
        before = _files(root)
        for kind in self.refused:
            if kind in self.kinds:
                assert self.refusal({"it": self.kinds[kind]()}, path) is not None, f"{kind} was saved"
        self._check_old(path, before, root)

    def check_interrupted(self, root: str) -> None:
        """Check that after a failed save only the old checkpoint stays, or nothing if there was none."""
        path, large = f"{root}/{self.name}", {"large": torch.zeros(_LARGE)}
        for is_saved in (False, True):
            if is_saved:
                self.save(OLD, path)
            before = _files(root)
            try:
                self.save(large, path, callback=_Stop())
            except InterruptedError:
                pass
            else:
                msg = "The save went on when its callback had failed."
                raise AssertionError(msg)
            if is_saved:
                self._check_old(path, before, root)
            else:
                assert _files(root) == before, "something is left behind"

    def flaws(self, kind: str, root: str) -> Iterator[str]:
        """Yield the errors in saving and loading a kind."""
        state = {"before": torch.arange(3.0), "it": self.kinds[kind](), "after": torch.arange(2)}
        folder = f"{root}/{[*self.kinds].index(kind)}"
        path = f"{folder}/{self.name}"
        error = self.refusal(state, path)
        if (error is not None) != (kind in self.refused):
            yield f"refused: {error!r}"
        elif error is not None:
            if not ("'it" in str(error) or "nested deeper" in str(error)) or ". " not in str(error):
                yield f"an error without entry or remedy: {error}"
            fs, inner = fsspec.url_to_fs(folder)
            if fs.exists(inner):
                yield "something is left behind"
        elif not same(self.returned(state), found := self.load(path)):
            yield f"returned {found.get('it', found)!r}"

    def refusal(self, state: Any, path: str) -> Exception | None:
        """Return the error by which a save is refused; None if it is not refused."""
        try:
            self.save(state, path)
        except (ValueError, TypeError) as error:
            return error
        return None

    def _check_old(self, path: str, before: list[str], root: str) -> None:
        assert _files(root) == before, f"the files are {_files(root)}, and were {before}"
        assert same(self.returned(OLD), self.load(path)), "the old checkpoint has changed"


def _files(root: str) -> list[str]:
    fs, inner = fsspec.url_to_fs(root)
    fs.invalidate_cache()
    try:
        return sorted(fs.find(inner))
    except FileNotFoundError:  # the bucket does not exist
        return []
