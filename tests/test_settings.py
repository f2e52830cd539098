"""backends.csx.storage.s3.profile: read, set, scoped, and set from dotted names."""

import pytest

import fsspec_csx as cstorch
from fsspec_csx import backends
from fsspec_csx.errors import UnknownFlagError


def test_profile_is_none_until_set() -> None:
    """The flag can be read, set and set to None again."""
    assert backends.csx.storage.s3.profile is None
    cstorch.backends.csx.storage.s3.profile = "work"
    assert backends.csx.storage.s3.profile == "work"
    backends.csx.storage.s3.profile = None
    assert cstorch.backends.csx.storage.s3.profile is None


def test_deleted_flag_is_none() -> None:
    """A flag that is deleted has no value, and can be set again."""
    backends.csx.storage.s3.profile = "work"
    del backends.csx.storage.s3.profile
    assert backends.csx.storage.s3.profile is None
    backends.csx.storage.s3.profile = "other"
    assert backends.csx.storage.s3.profile == "other"
    with pytest.raises(UnknownFlagError):
        del backends.csx.storage.s3  # type: ignore[misc]


def test_scoped_flag_is_put_back() -> None:
    """A scoped flag holds within its block, and the former value after it, exceptions or not."""
    backends.csx.storage.s3.profile = "outer"
    with backends.scoped_flags({"csx.storage.s3.profile": "inner"}):
        assert backends.csx.storage.s3.profile == "inner"
    assert backends.csx.storage.s3.profile == "outer"
    with pytest.raises(ZeroDivisionError), backends.scoped_flags({"csx.storage.s3.profile": None}):
        raise ZeroDivisionError
    assert backends.csx.storage.s3.profile == "outer"


def test_flags_are_set_from_dotted_names() -> None:
    """The dict that YAML gives sets the flag."""
    backends.set_flags({"csx.storage.s3.profile": "from-yaml"})
    assert backends.csx.storage.s3.profile == "from-yaml"


@pytest.mark.parametrize("name", ["csx.storage.s3.profil", "csx.storage", "csx", "", "profile", "csx.storage.s3._x"])
def test_unknown_flag_lists_the_known(name: str) -> None:
    """A name that is no flag is an error that lists the flags, and no other flag of the dict is set."""
    with pytest.raises(UnknownFlagError, match=r"csx\.storage\.s3\.(profile|cache_dir)"):
        backends.set_flags({"csx.storage.s3.profile": "never", name: "x"})
    assert backends.csx.storage.s3.profile is None


def test_unknown_attribute_lists_the_known() -> None:
    """A misspelt attribute is an error on reading and on setting, rather than a setting without effect."""
    with pytest.raises(UnknownFlagError, match=r"csx\.storage\.s3\.profile"):
        backends.csx.storage.s3.profil = "x"  # type: ignore[attr-defined]
    with pytest.raises(UnknownFlagError, match=r"csx\.storage\.s3\.profile"):
        backends.csx.storage.gcs  # type: ignore[attr-defined]  # noqa: B018
    assert not hasattr(backends.csx, "nothing")


def test_value_of_the_wrong_kind_is_refused() -> None:
    """A profile is a name that is not empty; after an error the former value holds."""
    backends.csx.storage.s3.profile = "before"
    with pytest.raises(TypeError, match="name"):
        backends.csx.storage.s3.profile = 7  # type: ignore[assignment]
    with pytest.raises(ValueError, match="empty"):
        backends.set_flags({"csx.storage.s3.profile": " "})
    assert backends.csx.storage.s3.profile == "before"


def test_flags_of_the_hardware() -> None:
    """Those of Cerebras PyTorch can be set; a wrong name of their groups gets the nearest right one."""
    backends.csx.performance.micro_batch_size = {"explore": {"min": 1}}
    backends.csx.debug.ini.any_name = True
    backends.csx.debug.debug_args.debug_usr.any_name = 1
    assert backends.csx.debug.debug_args.debug_usr.any_name == 1
    with backends.scoped_flags({"csx.performance.micro_batch_size": "auto", "csx.debug.ini.other": 3}):
        assert backends.csx.performance.micro_batch_size == "auto"
    assert backends.csx.performance.micro_batch_size == {"explore": {"min": 1}}
    for name in ("csx.performance.micro_batch_sze", "csx.perf.micro_batch_size", "micro_batch_sizes"):
        with pytest.raises(UnknownFlagError, match=r"Did you mean 'csx\.performance\.micro_batch_size'\?"):
            backends.set_flags({name: 1})
    with pytest.raises(UnknownFlagError, match=r"csx\.cluster\.auto_taint"):
        backends.csx.cluster.auto_tant = True
    backends.set_flags({"csx.performance.micro_batch_size": None})
