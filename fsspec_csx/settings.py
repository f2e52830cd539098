"""Settings of the process, such as ``backends.csx.storage.s3.profile``."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from typing import TYPE_CHECKING, Any, NoReturn

from fsspec_csx.errors import UnknownFlagError

__all__ = ["backends"]


class _Flags:
    """A node of the tree of flags; only its predefined names can be read or set."""

    def __init__(self, **flags: Any) -> None:
        vars(self).update(flags)

    if not TYPE_CHECKING:  # so that type checkers find misspelled flags

        def __getattr__(self, name: str) -> NoReturn:
            if name.startswith("__"):  # copy, pickle and inspect look up such names
                raise AttributeError(name)
            raise _unknown(name)

    def __setattr__(self, name: str, value: object) -> None:
        if name not in vars(self) or isinstance(getattr(self, name), _Flags):
            raise _unknown(name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        setattr(self, name, None)  # the default


class S3Flags(_Flags):
    """``backends.csx.storage.s3``: access to S3.

    Attributes:
        profile: name of the AWS profile for calls that name no credentials; None to use the fsspec configuration, the
            environment and the AWS files. Setting it raises TypeError if it is neither a str nor None, and ValueError
            if it is empty.
        cache_dir: a local folder that caches what open files read; None to use the fsspec configuration, or no cache.
        cache_size: the maximum size of the cache, in bytes or as a text such as "50GB"; None for the default.
    """

    profile: str | None
    cache_dir: str | os.PathLike[str] | None
    cache_size: int | str | None

    def __setattr__(self, name: str, value: object) -> None:
        if name == "profile" and value is not None and not isinstance(value, str):
            msg = f"A profile is a name (str) or None, not {type(value).__name__}. Give the name in the AWS files."
            raise TypeError(msg)
        if name == "profile" and isinstance(value, str) and not value.strip():
            msg = "A profile's name cannot be empty. Set it to None to use no profile."
            raise ValueError(msg)
        super().__setattr__(name, value)


class StorageFlags(_Flags):
    """``backends.csx.storage``: where checkpoints are stored."""

    s3: S3Flags


class FreeFlags:
    """Flags of any name and depth, for Cerebras hardware."""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> FreeFlags:
            if name.startswith("__"):
                raise AttributeError(name)
            setattr(self, name, FreeFlags())
            return getattr(self, name)


class CSXFlags(_Flags):
    """``backends.csx``: the flags of Cerebras PyTorch 2.10; those outside ``storage`` have no effect."""

    cluster: Any
    debug: Any
    performance: Any
    precision: Any
    storage: StorageFlags


class Backends(_Flags):
    """The root of all flags.

    A flag takes effect at the next ``fsspec.open`` in every thread; open files keep their settings.
    """

    csx: CSXFlags

    def set_flags(self, flags: Mapping[str, Any]) -> None:
        """Set all of these flags, or none if one is invalid.

        Args:
            flags: values by dotted names, such as ``{"csx.storage.s3.profile": "my-profile"}``.

        Raises:
            UnknownFlagError: if a name is not a flag.
            TypeError, ValueError: if a flag does not accept its value.
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
        """Set flags of the process for a ``with`` block, and restore the old values afterwards.

        Args:
            flags: see ``set_flags``.

        Raises:
            UnknownFlagError, TypeError, ValueError: see ``set_flags``.
        """
        before = {name: self._get(name) for name in flags}
        self.set_flags(flags)
        try:
            yield
        finally:
            self.set_flags(before)

    def _get(self, name: str) -> Any:
        if name.startswith(_FREE):
            return None
        if name not in _names(self):
            raise _unknown(name)
        return reduce(getattr, name.split("."), self)

    def _set(self, name: str, value: Any) -> None:
        if not name.startswith(_FREE):
            node, _, leaf = name.rpartition(".")
            setattr(reduce(getattr, node.split("."), self), leaf, value)


_FREE = ("csx.debug.debug_args.", "csx.debug.ini.")


def has_effect(name: str) -> bool:
    """Return whether a flag belongs to this package, and not to Cerebras hardware."""
    return name.startswith("csx.storage.")


def _names(node: _Flags, prefix: str = "") -> list[str]:
    """Return all dotted flag names below a node."""
    names = []
    for name, value in vars(node).items():
        names += _names(value, f"{prefix}{name}.") if isinstance(value, _Flags) else [prefix + name]
    return names


def _unknown(name: str) -> UnknownFlagError:
    known = _names(backends)
    by_last_word = {each.rpartition(".")[2]: each for each in known}
    near = difflib.get_close_matches(name, known, 1) or difflib.get_close_matches(name, by_last_word, 1)
    remedy = (
        f"Did you mean {by_last_word.get(near[0], near[0])!r}?"
        if near
        else "Flags of S3 are csx.storage.s3.profile, cache_dir and cache_size."
    )
    return UnknownFlagError(f"There is no flag {name!r}.", remedy)


def _without_effect(names: str, **flags: Any) -> _Flags:
    return _Flags(**dict.fromkeys(names.split()), **flags)


_DEBUG = """
act_memory_gi check_constraints chf_memory_gi cmd_memory_gi compile_crd_memory_gi drop_data execute_crd_memory_gi
fabric_type_blacklist implicit_cast_cb16_to_fp32 lazy_initialization log_initialization op_definition_module
optimize_initialization retrace_every_iteration save_gpv skip_connectivity_check skip_weight_init wgt_memory_gi
wrk_memory_gi
"""
_PERFORMANCE = "compress_weights max_transfer_bytes micro_batch_size transfer_processes use_speculative_optimizers"
backends = Backends(
    csx=CSXFlags(
        cluster=_without_effect("auto_taint"),
        debug=_without_effect(_DEBUG, debug_args=FreeFlags(), ini=FreeFlags()),
        performance=_without_effect(_PERFORMANCE),
        precision=_without_effect("optimization_level"),
        storage=StorageFlags(s3=S3Flags(profile=None, cache_dir=None, cache_size=None)),
    )
)
