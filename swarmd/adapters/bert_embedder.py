"""A BERT sentence encoder from a directory on this machine, computed with numpy: an `Embedder` without a network.

Job: texts to unit vectors as MiniLM-like models make them. Invariants: what a directory lacks is said when it is
opened, not at the first text; the id holds a digest of weights, vocabulary and settings, so vectors of two models are
never mixed; safe for calls from several threads. It blocks and computes: call it in a thread.
Method: Devlin et al., "BERT" (2018), for the encoder; Reimers and Gurevych, "Sentence-BERT" (2019), for the pooling.
Must not know: stores or memories.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from swarmd.adapters.bert_files import BertFiles, bad, read_model
from swarmd.core.errors import Rejected
from swarmd.wordpiece import WordPiece

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Tokens computed at once, padding included: more are no faster, and take memory.
BATCH_TOKENS: Final = 2_048
_DIGEST_CHARS: Final = 16


class BertEmbedder:
    """Texts to unit vectors; a text that is longer than the model takes is embedded by its beginning."""

    def __init__(self, folder: str) -> None:
        """Reads and checks the directory. Raises `Rejected("bad_model" | "missing_extra")`."""
        if importlib.util.find_spec("numpy") is None:
            raise Rejected("missing_extra", "a model directory needs numpy: pip install 'swarmd[memory]'")
        try:
            path = Path(folder).expanduser()
            files = read_model(path)
        except (OSError, RuntimeError, ValueError) as error:  # a path too long, of nobody's home, with a NUL
            raise Rejected("bad_model", f"the directory {folder[:200]!r} cannot be opened: {error}") from None
        self._config, self._pooling = files.config, files.pooling
        self._words = WordPiece(files.vocabulary, lower=files.lower)
        self._tokens_max = files.tokens_max
        self._embeddings, self._layers = _arranged(files, path)
        self.dimension = files.config.hidden_size
        self.id = f"bert-{files.digest[:_DIGEST_CHARS]}-{self.dimension}"

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One unit vector per text, in order.

        Texts of like length are computed together, which changes their vectors by rounding only (about 1e-7).
        """
        numbers = [self._words.numbers(text, self._tokens_max) for text in texts]
        order = sorted(range(len(texts)), key=lambda at: len(numbers[at]))
        found: list[list[float]] = [[] for _ in texts]
        batch: list[int] = []
        for at in [*order, -1]:
            if batch and (at < 0 or len(numbers[at]) * (len(batch) + 1) > BATCH_TOKENS):
                for place, vector in zip(batch, self._encoded([numbers[one] for one in batch]), strict=True):
                    found[place] = vector
                batch = []
            batch.append(at)
        return found

    def _encoded(self, batch: list[list[int]]) -> list[list[float]]:
        import numpy as np

        width = max(map(len, batch))
        tokens = np.full((len(batch), width), self._words.padding)
        mask = np.zeros((len(batch), width), "float32")
        for row, numbers in enumerate(batch):
            tokens[row, : len(numbers)] = numbers
            mask[row, : len(numbers)] = 1.0
        words, positions, scale, shift = self._embeddings
        state = _normed(words[tokens] + positions[:width], scale, shift, self._config.layer_norm_eps)
        hidden = np.where(mask[:, None, None, :] > 0, np.float32(0), np.float32(-1e30))  # what padding may not reach
        for layer in self._layers:
            state = self._layer(state, hidden, layer)
        if self._pooling == "cls":
            pooled = state[:, 0]
        else:
            pooled = (state * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        norms = np.sqrt((pooled.astype("float64") ** 2).sum(axis=1, keepdims=True))
        unit: list[list[float]] = (pooled / np.maximum(norms, 1e-12)).tolist()
        return unit

    def _layer(self, state: Any, hidden: Any, layer: dict[str, Any]) -> Any:
        import numpy as np

        rows, width, size = state.shape
        heads, eps = self._config.num_attention_heads, self._config.layer_norm_eps
        joint = (state @ layer["qkv"] + layer["qkv_bias"]).reshape(rows, width, 3, heads, size // heads)
        query, key, value = (joint[:, :, part].transpose(0, 2, 1, 3) for part in range(3))
        scores = query @ key.transpose(0, 1, 3, 2) / np.float32(np.sqrt(size // heads)) + hidden
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        seen = (scores @ value).transpose(0, 2, 1, 3).reshape(rows, width, size)
        state = _normed(state + seen @ layer["out"] + layer["out_bias"], layer["norm1"], layer["norm1_bias"], eps)
        inner = state @ layer["up"] + layer["up_bias"]
        inner = np.maximum(inner, 0) if self._config.hidden_act == "relu" else _gelu(inner)
        return _normed(state + inner @ layer["down"] + layer["down_bias"], layer["norm2"], layer["norm2_bias"], eps)


def _normed(state: Any, scale: Any, shift: Any, eps: float) -> Any:
    import numpy as np

    centred = state - state.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + np.float32(eps)) * scale + shift


def _gelu(x: Any) -> Any:
    """x times the normal distribution's integral.

    The error function, which numpy lacks, is formula 7.1.26 of Abramowitz and Stegun, "Handbook of Mathematical
    Functions" (1964): off by 1.5e-7 at most, about what a float32 holds.
    """
    import numpy as np

    size = np.abs(x) * np.float32(0.7071067811865476)
    t = 1 / (1 + np.float32(0.3275911) * size)
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return np.float32(0.5) * x * (1 + np.sign(x) * (1 - poly * np.exp(-size * size)))


def _arranged(files: BertFiles, folder: Path) -> tuple[tuple[Any, ...], list[dict[str, Any]]]:
    """The tensors as the encoder multiplies them: inputs first, the three of attention side by side."""
    import numpy as np

    config, tensors = files.config, files.tensors
    size, inner = config.hidden_size, config.intermediate_size
    prefix = "" if "embeddings.word_embeddings.weight" in tensors else "bert."

    def named(name: str, *shape: int) -> Any:
        found = tensors.get(prefix + name)
        if found is None and "LayerNorm" in name:  # as they were called first
            found = tensors.get(prefix + name.replace("weight", "gamma").replace("bias", "beta"))
        if found is None:
            raise bad(f"{folder}: the weights lack {name}; this is not the encoder that config.json describes")
        if found.shape != shape:
            raise bad(f"{folder}: {name} has the shape {list(found.shape)}, not {list(shape)} as config.json wants it")
        if not np.isfinite(found).all():
            raise bad(f"{folder}: {name} holds numbers that are not finite; fetch the weights again")
        return found

    def linear(name: str, wide: int, deep: int) -> tuple[Any, Any]:
        return np.ascontiguousarray(named(f"{name}.weight", wide, deep).T), named(f"{name}.bias", wide)

    layers = []
    for number in range(config.num_hidden_layers):
        at = f"encoder.layer.{number}"
        layer: dict[str, Any] = {}
        parts = [linear(f"{at}.attention.self.{part}", size, size) for part in ("query", "key", "value")]
        layer["qkv"] = np.concatenate([weight for weight, _ in parts], axis=1)
        layer["qkv_bias"] = np.concatenate([bias for _, bias in parts])
        layer["out"], layer["out_bias"] = linear(f"{at}.attention.output.dense", size, size)
        layer["up"], layer["up_bias"] = linear(f"{at}.intermediate.dense", inner, size)
        layer["down"], layer["down_bias"] = linear(f"{at}.output.dense", size, inner)
        for norm, where in (("norm1", f"{at}.attention.output"), ("norm2", f"{at}.output")):
            layer[norm] = named(f"{where}.LayerNorm.weight", size)
            layer[f"{norm}_bias"] = named(f"{where}.LayerNorm.bias", size)
        layers.append(layer)
    words = named("embeddings.word_embeddings.weight", config.vocab_size, size)
    positions = named("embeddings.position_embeddings.weight", config.max_position_embeddings, size)
    kinds = tensors.get(f"{prefix}embeddings.token_type_embeddings.weight")
    if kinds is not None and kinds.ndim == 2 and kinds.shape[1] == size and len(kinds):
        positions = positions + kinds[0]  # every text is a first one
    scale, shift = named("embeddings.LayerNorm.weight", size), named("embeddings.LayerNorm.bias", size)
    return (words, positions, scale, shift), layers
