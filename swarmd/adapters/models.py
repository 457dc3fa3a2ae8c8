"""Open a model by its name, `provider:model`.

Job: know the providers, find the key, refuse what cannot work before the first task needs it.
Invariant: importing this imports no provider's library; a key is read here and handed on, never kept or shown.
Must not know: who asks, or for what.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from swarmd.adapters.extractive_model import MODEL_NAME, ExtractiveModel
from swarmd.adapters.openai_model import OpenAIModel, missing_extra
from swarmd.core.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swarmd.ports import Model

KEY_FILE_BYTES_MAX = 10_000


class ModelSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """How to reach a model. `name` is `provider:model`; the key is named, never held.

    `base_url` "" means the environment's OPENAI_BASE_URL, and without that OpenAI itself. `api_key_file` goes before
    the environment variable `api_key_env`. A server of one's own (`base_url` set) may do without a key.
    """

    name: str
    base_url: str = ""
    api_key_env: str = "OPENAI_API_KEY"
    api_key_file: str = ""
    timeout_ms: int = 60_000


def open_model(settings: ModelSettings, environ: Mapping[str, str] | None = None) -> Model:
    """A model ready for its first call; no network yet.

    Raises `Rejected("unknown_model" | "missing_extra" | "missing_api_key" | "bad_api_key" | "bad_base_url" | ...)`.
    """
    environ = os.environ if environ is None else environ
    provider, _, model = settings.name.partition(":")
    if settings.name == MODEL_NAME:
        return ExtractiveModel()
    if provider != "openai" or not model:
        raise Rejected(
            "unknown_model", f"unknown model {settings.name!r}: use {MODEL_NAME!r} or 'openai:<model of the endpoint>'"
        )
    if importlib.util.find_spec("openai") is None:
        raise missing_extra()
    base_url = settings.base_url or environ.get("OPENAI_BASE_URL", "")
    key = _api_key(settings, environ)
    if not key and not base_url:
        raise Rejected(
            "missing_api_key",
            f"{settings.name} needs a key: set {settings.api_key_env}, or api_key_file, or the base_url of a server "
            f"that wants none; {MODEL_NAME!r} works without any",
        )
    return OpenAIModel(model, base_url or None, key, settings.timeout_ms)


def _api_key(settings: ModelSettings, environ: Mapping[str, str]) -> str:
    if not settings.api_key_file:
        return environ.get(settings.api_key_env, "").strip()
    try:
        with Path(settings.api_key_file).open("rb") as file:
            key = file.read(KEY_FILE_BYTES_MAX).strip()
    except OSError as error:
        reason = f"cannot read api_key_file {settings.api_key_file}: {error.strerror}"
        raise Rejected("missing_api_key", reason) from None
    if not key or not key.isascii():
        raise Rejected("bad_api_key", f"api_key_file {settings.api_key_file} must hold the key and nothing else")
    return key.decode("ascii")
