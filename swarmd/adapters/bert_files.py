"""Reads the directory of a sentence encoder: settings, vocabulary, pooling, weights.

Job: files of the usual layout (`config.json`, `vocab.txt` or `tokenizer.json`, `model.safetensors`, and what sentence
encoders add) to one checked value. Invariant: nothing in a file is run, no size in it is believed before the file
itself has it; what does not fit is `Rejected("bad_model")` with the file's name and what to do.
Format of weights: 8 bytes with the length of a JSON header (little-endian), the header, then the tensors' bytes.
Must not know: what is computed with it.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from msgspec import Struct, field

from swarmd.core.errors import UNREADABLE, Rejected

if TYPE_CHECKING:
    from pathlib import Path

T = TypeVar("T")

WEIGHTS: Final = "model.safetensors"
SETTINGS_BYTES_MAX: Final = 64 * 1024 * 1024
HEADER_BYTES_MAX: Final = 16 * 1024 * 1024
_DTYPES: Final = {"F32": ("<f4", 4), "F16": ("<f2", 2), "BF16": ("<u2", 2), "F64": ("<f8", 8), "I64": ("<i8", 8)}


class BertConfig(Struct, frozen=True):
    """What `config.json` says of a BERT encoder."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    model_type: str = ""
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    position_embedding_type: str = "absolute"


class Tensor(Struct):
    """A tensor's entry in the header of the weights."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class BertFiles(Struct):
    """A sentence encoder as its directory has it. `digest` tells apart whatever makes different vectors."""

    config: BertConfig
    vocabulary: dict[str, int]
    lower: bool
    tokens_max: int
    pooling: str
    tensors: dict[str, Any]
    digest: str


class _Length(Struct):
    max_seq_length: int | None = None
    do_lower_case: bool | None = None


class _TokenizerSettings(Struct):
    do_lower_case: bool = True


class _TokenizerModel(Struct):
    vocab: dict[str, int] = field(default_factory=dict)


class _Tokenizer(Struct):
    model: _TokenizerModel


class _Module(Struct):
    type: str = ""


class _Pooling(Struct):
    pooling_mode: str = ""
    pooling_mode_mean_tokens: bool = False
    pooling_mode_cls_token: bool = False


def read_model(folder: Path) -> BertFiles:
    """Everything that is needed to embed. Raises `Rejected("bad_model")`."""
    if not folder.is_dir():
        raise bad(f"there is no directory {folder}: unpack a sentence encoder there, or name another one")
    _refuse_modules(folder)
    config = _decoded(folder / "config.json", BertConfig)
    _check_config(folder, config)
    sizes = _optional(folder / "sentence_bert_config.json", _Length) or _Length()
    lower = (_optional(folder / "tokenizer_config.json", _TokenizerSettings) or _TokenizerSettings()).do_lower_case
    vocabulary = _vocabulary(folder)
    if max(vocabulary.values()) >= config.vocab_size:
        raise bad(f"{folder}: the vocabulary has {len(vocabulary)} tokens, config.json says {config.vocab_size}")
    tokens_max = min(sizes.max_seq_length or config.max_position_embeddings, config.max_position_embeddings)
    if tokens_max < 3:
        raise bad(f"{folder}: at most {tokens_max} tokens a text leave no room for a word")
    pooling = _pooling(folder)
    tensors, digest = _weights(folder / WEIGHTS)
    what = msgspec.json.encode((config, sorted(vocabulary.items()), lower, tokens_max, pooling))
    digest = hashlib.sha256(what + digest).digest()
    return BertFiles(config, vocabulary, lower, tokens_max, pooling, tensors, digest.hex())


def bad(message: str) -> Rejected:
    """Why a directory cannot be used."""
    return Rejected("bad_model", message)


def _check_config(folder: Path, config: BertConfig) -> None:
    if config.model_type != "bert":
        raise bad(
            f"{folder}: a model of type {config.model_type or 'unknown'!r} is not supported, only 'bert' (such as "
            "MiniLM-L6 sentence encoders): serve others behind an endpoint and name it as provider:model"
        )
    if config.hidden_act not in ("gelu", "relu") or config.position_embedding_type != "absolute":
        raise bad(
            f"{folder}: activation {config.hidden_act!r} with {config.position_embedding_type!r} positions is not "
            "supported, only gelu or relu with absolute ones"
        )
    numbers = (config.vocab_size, config.hidden_size, config.num_hidden_layers, config.num_attention_heads)
    if min(*numbers, config.intermediate_size, config.max_position_embeddings) < 1:
        raise bad(f"{folder}/config.json: every size must be at least 1")
    if config.hidden_size % config.num_attention_heads:
        raise bad(f"{folder}: {config.num_attention_heads} heads do not divide a width of {config.hidden_size}")


def _refuse_modules(folder: Path) -> None:
    """A sentence encoder may add layers behind BERT; only those that are known may be there."""
    for module in _optional(folder / "modules.json", list[_Module]) or []:
        name = module.type.rpartition(".")[2]
        if name not in ("Transformer", "Pooling", "Normalize"):
            raise bad(
                f"{folder}/modules.json: a module {name!r} is not supported, only Transformer, Pooling, Normalize"
            )


def _pooling(folder: Path) -> str:
    found = _optional(folder / "1_Pooling" / "config.json", _Pooling)
    if found is None or found.pooling_mode_mean_tokens or found.pooling_mode == "mean":
        return "mean"
    if found.pooling_mode_cls_token or found.pooling_mode == "cls":
        return "cls"
    raise bad(f"{folder}/1_Pooling: this way of pooling is not supported, only mean and cls")


def _vocabulary(folder: Path) -> dict[str, int]:
    plain = folder / "vocab.txt"
    if not plain.exists():
        found = _decoded(folder / "tokenizer.json", _Tokenizer).model.vocab
        if not found or min(found.values()) < 0:
            raise bad(f"{folder}/tokenizer.json has no WordPiece vocabulary")
        return found
    try:
        lines = _bytes(plain, SETTINGS_BYTES_MAX).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise bad(f"{plain} is not UTF-8: {error}") from None
    tokens = [line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    if not tokens:
        raise bad(f"{plain} is empty")
    return {token: number for number, token in enumerate(tokens)}


def _weights(path: Path) -> tuple[dict[str, Any], bytes]:
    """Every tensor as float32, and the digest of the file."""
    import numpy

    if not path.exists():
        raise bad(f"{path.parent} has no {WEIGHTS}: save the model in that format")
    data = _bytes(path, 0)
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(HEADER_BYTES_MAX, len(data) - 8):
        raise bad(f"{path} is cut off or is no safetensors file: fetch it again")
    try:
        header = msgspec.json.decode(data[8 : 8 + length], type=dict[str, msgspec.Raw])
        entries = {
            name: msgspec.json.decode(raw, type=Tensor) for name, raw in header.items() if name != "__metadata__"
        }
    except UNREADABLE as error:
        raise bad(f"{path}: its header cannot be read: {error}") from None
    body = memoryview(data)[8 + length :]
    found = {}
    for name, entry in entries.items():
        begin, end = entry.data_offsets
        known = _DTYPES.get(entry.dtype)
        if known is None:
            raise bad(f"{path}: {name} has the type {entry.dtype}; supported are {', '.join(_DTYPES)}")
        if not 0 <= begin <= end or min(entry.shape, default=0) < 0:
            raise bad(f"{path}: the header places {name} nowhere")
        if end > len(body):
            raise bad(f"{path} is cut off: {name} ends {end - len(body)} bytes behind the file; fetch it again")
        if end - begin != known[1] * math.prod(entry.shape):
            raise bad(f"{path}: {name} has {end - begin} bytes, which do not make the shape {entry.shape}")
        values = numpy.frombuffer(body[begin:end], known[0])
        if entry.dtype == "BF16":  # the upper half of a float32
            values = (values.astype("<u4") << 16).view("<f4")
        found[name] = values.reshape(entry.shape).astype("float32", copy=False)
    return found, hashlib.sha256(data).digest()


def _bytes(path: Path, bytes_max: int) -> bytes:
    try:
        if bytes_max and path.stat().st_size > bytes_max:
            raise bad(f"{path} is larger than {bytes_max} bytes")
        return path.read_bytes()
    except OSError as error:
        raise bad(f"{path} cannot be read: {error.strerror}") from None


def _decoded(path: Path, kind: type[T]) -> T:
    data = _bytes(path, SETTINGS_BYTES_MAX)
    try:
        return msgspec.json.decode(data, type=kind)
    except UNREADABLE as error:
        raise bad(f"{path} cannot be read: {error}") from None


def _optional(path: Path, kind: type[T]) -> T | None:
    return _decoded(path, kind) if path.exists() else None
