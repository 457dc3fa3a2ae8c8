"""A tiny BERT for tests: its directory, and the same arithmetic once more in plain loops, from the paper's formulas."""

from __future__ import annotations

import json
import math
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

TOKENS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "the",
    "lease",
    "expire",
    "##s",
    "of",
    "a",
    "work",
    "##er",
    ".",
    "caf",
    "##e",
]
SIZE, HEADS, INNER, LAYERS, POSITIONS = 8, 2, 12, 2, 16
CONFIG: dict[str, Any] = {
    "model_type": "bert", "vocab_size": len(TOKENS), "hidden_size": SIZE, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "intermediate_size": INNER, "max_position_embeddings": POSITIONS,
    "hidden_act": "gelu", "layer_norm_eps": 1e-12,
}  # fmt: skip

Matrix = list[list[float]]


def shapes() -> dict[str, list[int]]:
    """Every tensor of such a model by its name."""
    found = {
        "embeddings.word_embeddings.weight": [len(TOKENS), SIZE],
        "embeddings.position_embeddings.weight": [POSITIONS, SIZE],
        "embeddings.token_type_embeddings.weight": [2, SIZE],
        "embeddings.LayerNorm.weight": [SIZE],
        "embeddings.LayerNorm.bias": [SIZE],
    }
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            found[f"{at}.attention.{part}.weight"] = [SIZE, SIZE]
            found[f"{at}.attention.{part}.bias"] = [SIZE]
        found[f"{at}.intermediate.dense.weight"], found[f"{at}.intermediate.dense.bias"] = [INNER, SIZE], [INNER]
        found[f"{at}.output.dense.weight"], found[f"{at}.output.dense.bias"] = [SIZE, INNER], [SIZE]
        for norm in ("attention.output", "output"):
            found[f"{at}.{norm}.LayerNorm.weight"], found[f"{at}.{norm}.LayerNorm.bias"] = [SIZE], [SIZE]
    return found


def weights() -> dict[str, list[float]]:
    """Numbers that look like chance and are the same everywhere, as a float32 holds them."""
    found, seed = {}, 1.0
    for name, shape in shapes().items():
        values = []
        for _ in range(math.prod(shape)):
            seed += 1.0
            value = math.sin(seed * 12.9898) * 0.7 + (1.0 if name.endswith("LayerNorm.weight") else 0.0)
            values.append(struct.unpack("<f", struct.pack("<f", value))[0])
        found[name] = values
    return found


def safetensors(tensors: dict[str, list[float]]) -> bytes:
    """The file: length of the header, header, numbers."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, values in tensors.items():
        part = struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": shapes()[name], "data_offsets": [len(body), len(body) + len(part)]}
        body += part
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + body


def write(folder: Path, **changes: Any) -> Path:
    """The whole directory, with some of `config.json` changed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
    (folder / "model.safetensors").write_bytes(safetensors(weights()))
    return folder


def expected(tokens: list[str]) -> list[float]:
    """The unit vector of a text of these tokens, one number after the other, in double precision."""
    flat = weights()

    def matrix(name: str) -> Matrix:
        rows, columns = shapes()[name]
        return [flat[name][row * columns : (row + 1) * columns] for row in range(rows)]

    def linear(vector: list[float], name: str) -> list[float]:
        rows, bias = matrix(f"{name}.weight"), flat[f"{name}.bias"]
        return [sum(w * x for w, x in zip(row, vector, strict=True)) + b for row, b in zip(rows, bias, strict=True)]

    def normed(vector: list[float], name: str) -> list[float]:
        mean = sum(vector) / len(vector)
        spread = math.sqrt(sum((x - mean) ** 2 for x in vector) / len(vector) + 1e-12)
        scale, shift = flat[f"{name}.weight"], flat[f"{name}.bias"]
        return [(x - mean) / spread * a + b for x, a, b in zip(vector, scale, shift, strict=True)]

    def added(one: list[float], other: list[float]) -> list[float]:
        return [x + y for x, y in zip(one, other, strict=True)]

    words, places = matrix("embeddings.word_embeddings.weight"), matrix("embeddings.position_embeddings.weight")
    kind = matrix("embeddings.token_type_embeddings.weight")[0]
    state = [
        normed(added(added(words[TOKENS.index(token)], places[at]), kind), "embeddings.LayerNorm")
        for at, token in enumerate(tokens)
    ]
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        query, key, value = ([linear(x, f"{at}.attention.self.{part}") for x in state] for part in PARTS)
        seen: Matrix = []
        for here in query:
            row: list[float] = []
            for head in range(HEADS):
                part = slice(head * SIZE // HEADS, (head + 1) * SIZE // HEADS)
                scores = [math.exp(_dot(here[part], there[part]) / math.sqrt(SIZE // HEADS)) for there in key]
                for column in range(part.start, part.stop):
                    row.append(sum(s * v[column] for s, v in zip(scores, value, strict=True)) / sum(scores))
            seen.append(row)
        norm = f"{at}.attention.output.LayerNorm"
        state = [
            normed(added(x, linear(y, f"{at}.attention.output.dense")), norm) for x, y in zip(state, seen, strict=True)
        ]
        inner = [[_gelu(x) for x in linear(y, f"{at}.intermediate.dense")] for y in state]
        norm = f"{at}.output.LayerNorm"
        state = [normed(added(x, linear(y, f"{at}.output.dense")), norm) for x, y in zip(state, inner, strict=True)]
    mean = [sum(row[column] for row in state) / len(state) for column in range(SIZE)]
    length = math.sqrt(_dot(mean, mean))
    return [x / length for x in mean]


PARTS = ("query", "key", "value")


def _dot(one: list[float], other: list[float]) -> float:
    return sum(x * y for x, y in zip(one, other, strict=True))


def _gelu(x: float) -> float:
    return x * 0.5 * (1.0 + math.erf(x / math.sqrt(2.0)))
