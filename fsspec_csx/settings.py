"""The settings that hold for the whole process: ``backends.csx.storage.s3.profile`` and its like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from fsspec_csx.errors import UnknownFlagError

__all__ = ["backends"]


class _Flags:
    """A node of the tree of flags; only the names it declares can be read or set."""

    if not TYPE_CHECKING:  # a type checker shall still find misspelt flags

        def __getattr__(self, name: str) -> NoReturn:
            # Called only for names that were not found; dunder lookups (copy, pickle, inspect) must stay quiet.
            if name.startswith("__"):
                raise AttributeError(name)
            raise _unknown(name)

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("_") and not isinstance(getattr(type(self), name, None), property):
            raise _unknown(name)
        super().__setattr__(name, value)


class S3Flags(_Flags):
    """``backends.csx.storage.s3``: how S3 is reached."""

    def __init__(self) -> None:
        self._profile: str | None = None

    @property
    def profile(self) -> str | None:
        """Name of the AWS profile used where a call names no credentials of its own; None leaves the choice to the
        fsspec configuration, the environment and the AWS files.

        Raises:
            TypeError: when set to something else than a str or None.
            ValueError: when set to an empty name.
        """
        return self._profile

    @profile.setter
    def profile(self, name: str | None) -> None:
        if name is not None and not isinstance(name, str):
            msg = f"A profile is a name (str) or None, not {type(name).__name__}. Give the name in the AWS files."
            raise TypeError(msg)
        if name is not None and not name.strip():
            msg = "A profile's name cannot be empty. Set it to None to use no profile."
            raise ValueError(msg)
        self._profile = name


class StorageFlags(_Flags):
    """``backends.csx.storage``."""

    def __init__(self) -> None:
        self._s3 = S3Flags()

    @property
    def s3(self) -> S3Flags:
        """How S3 is reached."""
        return self._s3


class CSXFlags(_Flags):
    """``backends.csx``."""

    def __init__(self) -> None:
        self._storage = StorageFlags()

    @property
    def storage(self) -> StorageFlags:
        """Where checkpoints are kept."""
        return self._storage


class Backends(_Flags):
    """The root of all flags.

    A flag takes effect at the next ``fsspec.open``, in every thread; files already open go on as they began.
    """

    def __init__(self) -> None:
        self._csx = CSXFlags()

    @property
    def csx(self) -> CSXFlags:
        """All flags of this package, under the name that Cerebras PyTorch gives them."""
        return self._csx

    def set_flags(self, flags: Mapping[str, Any]) -> None:
        """Set flags from dotted names, such as ``{"csx.storage.s3.profile": "my-profile"}``, as YAML gives them.

        Raises:
            UnknownFlagError: for a name that is no flag; then none is set.
            TypeError, ValueError: for a value the flag does not take; then none is set.
        """
        before = {name: self._get(name) for name in flags}
        try:
            for name, value in flags.items():
                self._set(name, value)
        except BaseException:
            for name, value in before.items():
                self._set(name, value)
            raise

    @contextmanager
    def scoped_flags(self, flags: Mapping[str, Any]) -> Iterator[None]:
        """Set flags for the length of a ``with`` block, for the whole process, and put the former values back after it.

        Raises:
            UnknownFlagError, TypeError, ValueError: as ``set_flags``.
        """
        before = {name: self._get(name) for name in flags}
        self.set_flags(flags)
        try:
            yield
        finally:
            self.set_flags(before)

    def _get(self, name: str) -> Any:
        if name not in _names(self):
            raise _unknown(name)
        value: Any = self
        for part in name.split("."):
            value = getattr(value, part)
        return value

    def _set(self, name: str, value: Any) -> None:
        node, _, leaf = name.rpartition(".")
        target: Any = self
        for part in node.split("."):
            target = getattr(target, part)
        setattr(target, leaf, value)


def _names(node: _Flags, prefix: str = "") -> list[str]:
    """All dotted flag names below this node."""
    names = []
    for name, attribute in vars(type(node)).items():
        if isinstance(attribute, property):
            value = getattr(node, name)
            names += _names(value, f"{prefix}{name}.") if isinstance(value, _Flags) else [prefix + name]
    return names


def _unknown(name: str) -> UnknownFlagError:
    return UnknownFlagError(f"There is no flag {name!r}.", f"The flags of backends are: {', '.join(_names(backends))}.")


backends = Backends()
