"""What a provider of models can do, as data: the settings of its endpoint and the shape of its requests.

A profile is where a server's ways are written down, so that no code asks "is this Ollama?". Users declare providers of
their own, or change one of these, in `[provider.NAME]`. Nothing here knows HTTP.
"""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct

TokenParameter = Literal["max_tokens", "max_completion_tokens"]
Structured = Literal["json_schema", "tool", "prompt"]
SystemRole = Literal["system", "developer", "user"]


class Profile(Struct, frozen=True):
    """One provider. `base_url` "" has to be given by the user; without `api_key_env` and key file it wants no key.

    `token_parameter` carries the limit of output tokens; `stream_usage` asks for the usage of a stream; `structured`
    is how a JSON Schema is asked for; `temperature` and `tools` say whether these may be sent at all, `parallel_tools`
    whether several calls may come in one answer; `system_role` is the role of instructions; `cost_in_usage` asks for
    the bill with each answer.
    """

    base_url: str = ""
    api_key_env: str = ""
    key_required: bool = False
    token_parameter: TokenParameter = "max_tokens"
    stream: bool = True
    stream_usage: bool = True
    structured: Structured = "json_schema"
    temperature: bool = True
    tools: bool = True
    parallel_tools: bool = True
    system_role: SystemRole = "system"
    embeddings: bool = True
    cost_in_usage: bool = False


#: Providers that are known by name. The defaults above are the safe middle: what every compatible server takes.
PROFILES: Final[dict[str, Profile]] = {
    "openai": Profile(
        base_url="https://api.openai.com/v1",
        api_key_env="OPENAI_API_KEY",
        key_required=True,
        token_parameter="max_completion_tokens",
    ),
    "ollama": Profile(base_url="http://127.0.0.1:11434/v1"),
    "vllm": Profile(base_url="http://127.0.0.1:8000/v1", api_key_env="VLLM_API_KEY"),
    "llamacpp": Profile(base_url="http://127.0.0.1:8080/v1", api_key_env="LLAMA_API_KEY"),
    "litellm": Profile(base_url="http://127.0.0.1:4000/v1", api_key_env="LITELLM_API_KEY"),
    "openrouter": Profile(
        base_url="https://openrouter.ai/api/v1",
        api_key_env="OPENROUTER_API_KEY",
        key_required=True,
        embeddings=False,
        cost_in_usage=True,
    ),
}

#: Dimensions of embedding models that are known by name.
DIMENSIONS: Final[dict[str, int]] = {
    "text-embedding-3-small": 1536,
    "text-embedding-3-large": 3072,
    "text-embedding-ada-002": 1536,
    "nomic-embed-text": 768,
    "mxbai-embed-large": 1024,
    "all-minilm": 384,
    "bge-m3": 1024,
}
