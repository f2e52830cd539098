"""The effective credentials, profile, endpoint, region, certificates, proxy and cache, and the source of each."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import timezone
from typing import Any

from botocore.httpsession import ProxyConfiguration, where
from botocore.utils import get_environ_proxies
from fsspec.asyn import sync
from fsspec.config import apply_config

from fsspec_csx.doctor.check import Check, failed, lacking, passed
from fsspec_csx.redaction import without_user
from fsspec_csx.s3.client import credentials
from fsspec_csx.s3.filesystem import CSXFileSystem, resolve_options

_KEY_VARIABLE = "AWS_ACCESS_KEY_ID"
_CLIENT_KEY = "aws_access_key_id"
_PROFILE_VARIABLES = ("AWS_DEFAULT_PROFILE", "AWS_PROFILE")  # in botocore's order
_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_OTHER_REGION = "AWS_REGION"  # other programs read it, but botocore does not
_FILES = {"shared-credentials-file": "credentials_file", "config-file": "config_file"}
# Descriptions of botocore's names for the sources of credentials.
_KINDS = {
    "assume-role": "the role that {profile} assumes",
    "assume-role-with-web-identity": "a role by web identity",
    "container-role": "the container's role",
    "custom-process": "the credential_process of {profile}",
    "env": f"{_KEY_VARIABLE} in the environment",
    "iam-role": "the instance's role",
    "login": "the console login of {profile}",
    "sso": "the SSO login of {profile}",
}
_BAD_CREDENTIALS = "Correct the credentials, or use others."


class ProbeFileSystem(CSXFileSystem):
    """A filesystem that creates no bucket."""

    _writes_create_buckets = False


class EffectiveConfig:
    """The effective settings of a call with these options; ``caller`` names the source of the options.

    Raises:
        CredentialsError: if the profile does not exist, or an AWS file cannot be read.
        ValueError: if the endpoint or the region is not valid.
    """

    def __init__(self, call: Mapping[str, Any], caller: str) -> None:
        configured = apply_config(CSXFileSystem, {})
        self._settled = resolve_options(call, configured)
        self._options = {**configured, **self._settled}
        self._call, self._caller = call, caller
        public = credentials.without_secrets(self._options)
        session = {"session": self._options["session"]} if self._options.get("session") else {}
        self.unsigned = ProbeFileSystem(**{**public, **session, "anon": True, "skip_instance_cache": True})
        self.unsigned.connect()
        self._session = self.unsigned.session
        self._profile = str(self._session.get_config_variable("profile") or "default")

    def sign_in(self) -> tuple[Check, ProbeFileSystem | None]:
        """Check the credentials, and connect; the filesystem is None without credentials."""
        try:
            fs = ProbeFileSystem(**{**self._call, "skip_instance_cache": True})
            fs.connect()
            return passed("credentials", self._credentials(fs)), fs
        except Exception as error:
            return failed("credentials", error, _BAD_CREDENTIALS), None

    def settings(self) -> Iterator[Check]:
        yield passed("profile", f"{self._profile!r}, {self._source_of_profile()}")
        yield passed("endpoint", f"{self.endpoint}, {self._source_of_endpoint()}")
        yield passed("region", f"{self.unsigned._s3.meta.region_name}, {self._source_of_region()}")
        yield self._certificates()
        yield passed("proxy", self._proxy())
        yield passed("cache", self._cache())

    @property
    def endpoint(self) -> str:
        return str(self.unsigned._s3.meta.endpoint_url)

    @property
    def verify(self) -> bool | str:
        """botocore's ``verify``: True, False, or the path of a certificate bundle."""
        return credentials.verify_of(self._session, self.unsigned.client_kwargs)

    @property
    def proxies(self) -> Mapping[str, str]:
        """The URL of the proxy for each scheme that has one."""
        configured = self.unsigned._s3.meta.config.proxies
        return dict(get_environ_proxies(self.endpoint) if configured is None else configured)

    # -- credentials ------------------------------------------------------------------------------------------------

    def _credentials(self, fs: ProbeFileSystem) -> str:
        if fs.anon:
            return f"none: anonymous access, as {self._named_by('anon')} has it"
        if explicit := fs.key or fs.client_kwargs.get(_CLIENT_KEY):
            option = "key" if fs.key else "client_kwargs"
            temporary = "temporary " if fs.token or fs.client_kwargs.get("aws_session_token") else ""
            named = f"{temporary}access key {shortened(explicit)}, named by {self._named_by(option)}"
            return f"{named} (rule {self._rule(option)}){self._unused()}"
        found = sync(fs.loop, fs.session.get_credentials)
        frozen = sync(fs.loop, found.get_frozen_credentials)
        temporary = "temporary " if frozen.token else ""
        text = f"{temporary}access key {shortened(frozen.access_key)} from {self._kind(found.method)}"
        if expiry := getattr(found, "_expiry_time", None):
            text += f", renewed before {expiry.astimezone(timezone.utc):%Y-%m-%d %H:%M} UTC"
        return f"{text} (rule {self._rule('profile', found.method)}){self._unused(found.method)}"

    def _kind(self, method: str) -> str:
        if method in _FILES:
            return f"profile {self._profile!r} in {self._file(_FILES[method])}"
        return _KINDS.get(method, method).format(profile=f"profile {self._profile!r}")

    def _rule(self, option: str, method: str = "") -> int:
        """Return the number of the rule that gave the credentials, 1 to 6."""
        if self._options.get(option) or self._options.get("session"):
            return self._level(option if self._options.get(option) else "session")
        if method == "env" or any(map(os.environ.get, _PROFILE_VARIABLES)):
            return 4
        return 5 if method in _FILES else 6

    def _unused(self, method: str = "") -> str:
        """Return a note on a variable without effect, which often surprises users."""
        if method != "env":
            return f"; {_KEY_VARIABLE} in the environment is not used" if os.environ.get(_KEY_VARIABLE) else ""
        variable = next(filter(os.environ.get, _PROFILE_VARIABLES), None)
        return f"; {variable} counts for all but the credentials" if variable else ""

    # -- where settings come from -----------------------------------------------------------------------------------

    def _level(self, option: str) -> int:
        """Return the number of the rule that gives an option: 1, 2 or 3."""
        names = (option, "profile_name") if option == "profile" else (option,)
        if any(self._call.get(name) for name in names):
            return 1
        return 2 if self._settled.get(option) else 3

    def _named_by(self, option: str) -> str:
        variable = f"FSSPEC_S3_{option.upper()}"
        configuration = variable if variable in os.environ else "the fsspec configuration"
        setting = credentials.SETTING.replace("profile", option) if option.startswith("cache") else credentials.SETTING
        return (self._caller, setting, configuration)[self._level(option) - 1]

    def _file(self, variable: str) -> str:
        return os.path.expanduser(str(self._session.get_config_variable(variable)))

    def _source_of_profile(self) -> str:
        if self._options.get("session"):
            return f"of the session that {self._named_by('session')} names"
        if self._options.get("profile"):
            return f"named by {self._named_by('profile')}"
        variable = next(filter(os.environ.get, _PROFILE_VARIABLES), None)
        return f"named by {variable}" if variable else "as none is named"

    def _source_of_endpoint(self) -> str:
        if self._options.get("endpoint_url"):
            return f"named by {self._named_by('endpoint_url')}"
        if self.unsigned.client_kwargs.get("endpoint_url"):
            return f"named by client_kwargs of {self._named_by('client_kwargs')}"
        if self._session.get_config_variable("ignore_configured_endpoint_urls"):
            return "Amazon's own, as configured ones are to be ignored"
        if variable := next(filter(os.environ.get, _ENDPOINT_VARIABLES), None):
            return f"named by {variable}"
        section = self._session.get_scoped_config()
        services = self._session.full_config.get("services", {}).get(section.get("services"), {})
        if services.get("s3", {}).get("endpoint_url"):
            return f"named by services {section['services']!r} of profile {self._profile!r}"
        return self._of_profile("endpoint_url") if section.get("endpoint_url") else "Amazon's own, as none is named"

    def _source_of_region(self) -> str:
        for option in ("client_kwargs", "config_kwargs"):
            if (self._options.get(option) or {}).get("region_name"):
                return f"named by {option} of {self._named_by(option)}"
        read = self._session.session_var_map["region"][1]
        read = [read] if isinstance(read, str) else read
        other = "" if _OTHER_REGION in read else os.environ.get(_OTHER_REGION)
        differs = other and other != self.unsigned._s3.meta.region_name
        unread = f"; {_OTHER_REGION} in the environment is not read" if differs else ""
        if variable := next(filter(os.environ.get, read), None):
            return f"named by {variable}{unread}"
        named = bool(self._session.get_scoped_config().get("region"))
        return (self._of_profile("region") if named else "as none is named") + unread

    def _of_profile(self, name: str) -> str:
        return f"{name} of profile {self._profile!r}"

    def _certificates(self) -> Check:
        verify = self.verify
        if self.unsigned.client_kwargs.get("verify") is not None:
            source = f"named by client_kwargs of {self._named_by('client_kwargs')}"
        elif os.environ.get("AWS_CA_BUNDLE"):
            source = "named by AWS_CA_BUNDLE"
        elif self._session.get_config_variable("ca_bundle"):
            source = self._of_profile("ca_bundle")
        else:
            source = f"named by {credentials.BUNDLE}"
        if isinstance(verify, str) and not os.path.exists(verify):
            return failed("certificates", f"There is no file {verify}, {source}.", "Name a file of certificates.")
        if self.endpoint.startswith("http:"):
            return passed("certificates", "none are needed, as the endpoint speaks plain http")
        if verify is True:
            return passed("certificates", f"{where()}, as no bundle is named (the system's are not read)")
        if not verify:
            return lacking(
                "certificates", "none are checked, as verify is False", "Name a file of certificates instead."
            )
        return passed("certificates", f"{verify}, {source}")

    def _proxy(self) -> str:
        proxy = ProxyConfiguration(self.proxies).proxy_url_for(self.endpoint)
        return f"{without_user(proxy) if proxy else 'none'} on the way to the endpoint"

    def _cache(self) -> str:
        cache = self.unsigned.block_cache
        if cache is None:
            return "none, as no cache_dir is named"
        return f"{cache.path}, named by {self._named_by('cache_dir')}, of at most {cache.limit:,} bytes"


def shortened(key: str) -> str:
    """Return both ends of an access key, enough to recognize it."""
    return f"{key[:4]}...{key[-4:]}" if len(key) >= 12 else credentials.mask(key)
