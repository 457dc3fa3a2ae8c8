"""Open a model or an embedder by its name, `provider:model`.

Job: know the providers, find the key, refuse what cannot work before the first task needs it.
Invariant: importing this imports no provider's library; a key is read here and handed on, never kept or shown.
Must not know: who asks, or for what.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct, field

from swarmd.adapters.extractive_model import MODEL_NAME, ExtractiveModel
from swarmd.adapters.noop_model import NOOP_NAME, NoopModel
from swarmd.adapters.openai_client import Endpoint, missing_extra
from swarmd.adapters.openai_embedder import OpenAIEmbedder
from swarmd.adapters.openai_model import OpenAIModel
from swarmd.core.errors import Rejected
from swarmd.core.model_limits import Rate
from swarmd.core.model_profile import PROFILES, Profile
from swarmd.core.prices import Price

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swarmd.ports import Embedder, Model

KEY_FILE_BYTES_MAX: Final = 10_000
#: Where OpenAI's own tools look for another endpoint.
URL_VARIABLE: Final = "OPENAI_BASE_URL"


class ModelSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """How to reach a model. `name` is `provider:model`; the key is named, never held.

    What is "" or None is as the provider's profile says; `api_key_file` goes before the variable `api_key_env`. A
    server of one's own (`base_url` set) may do without a key.
    """

    name: str
    base_url: str = ""
    api_key_env: str = ""
    api_key_file: str = ""
    timeout_ms: int = 60_000
    stall_ms: int = 30_000
    profile: Profile | None = None
    rate: Rate = Rate()
    concurrency_max: int = 64
    prices: dict[str, Price] = field(default_factory=dict)

    @property
    def provider(self) -> str:
        return self.name.partition(":")[0]


def open_model(settings: ModelSettings, environ: Mapping[str, str] | None = None) -> Model:
    """A model ready for its first call; no network yet.

    Raises `Rejected("unknown_model" | "missing_extra" | "missing_api_key" | "bad_api_key" | "bad_base_url" | ...)`.
    """
    if settings.name == MODEL_NAME:
        return ExtractiveModel()
    if settings.name == NOOP_NAME:
        return NoopModel()
    endpoint = endpoint_of(settings, os.environ if environ is None else environ)
    return OpenAIModel(settings.name.partition(":")[2], endpoint)


def open_embedder(settings: ModelSettings, dimension: int = 0, environ: Mapping[str, str] | None = None) -> Embedder:
    """An embedder by name; `dimension` 0 is the one its model is known for. Raises as `open_model`."""
    endpoint = endpoint_of(settings, os.environ if environ is None else environ)
    return OpenAIEmbedder(settings.name.partition(":")[2], endpoint, dimension)


def endpoint_of(settings: ModelSettings, environ: Mapping[str, str]) -> Endpoint:
    """Where and how the provider of a model is asked, its key included. Raises as `open_model`."""
    provider, _, model = settings.name.partition(":")
    profile = settings.profile or PROFILES.get(provider)
    if profile is None or not model:
        known = ", ".join(f"{name}:" for name in PROFILES)
        raise Rejected(
            "unknown_model",
            f"unknown model {settings.name!r}: use {MODEL_NAME!r}, or a model of a known provider ({known}) or of one "
            "declared by [provider.NAME] in swarm.toml",
        )
    if importlib.util.find_spec("openai") is None:
        raise missing_extra()
    own_url = settings.base_url or (environ.get(URL_VARIABLE, "") if provider == "openai" else "")
    if not own_url and not profile.base_url:
        raise Rejected("bad_base_url", f"provider {provider!r} needs a base_url: set it in [provider.{provider}]")
    variable = settings.api_key_env or profile.api_key_env
    key = _api_key(settings.api_key_file, variable, environ)
    if not key and profile.key_required and not own_url:
        raise Rejected(
            "missing_api_key",
            f"{settings.name} needs a key: set {variable}, or api_key_file, or the base_url of a server "
            f"that wants none; {MODEL_NAME!r} works without any",
        )
    profile = msgspec.structs.replace(profile, token_parameter=_token_parameter(profile, provider, own_url))
    return Endpoint(provider, own_url or profile.base_url, key, settings.timeout_ms, settings.stall_ms, profile)


def _token_parameter(profile: Profile, provider: str, own_url: str) -> str:
    """OpenAI itself takes only the new name; other servers behind `openai:` mostly know the old one."""
    if provider == "openai" and own_url and profile == PROFILES["openai"] and "//api.openai.com" not in own_url:
        return "max_tokens"
    return profile.token_parameter


def _api_key(file_name: str, variable: str, environ: Mapping[str, str]) -> str:
    if not file_name:
        return environ.get(variable, "").strip() if variable else ""
    try:
        with Path(file_name).open("rb") as file:
            key = file.read(KEY_FILE_BYTES_MAX).strip()
    except OSError as error:
        raise Rejected("missing_api_key", f"cannot read api_key_file {file_name}: {error.strerror}") from None
    if not key or not key.isascii():
        raise Rejected("bad_api_key", f"api_key_file {file_name} must hold the key and nothing else")
    return key.decode("ascii")
