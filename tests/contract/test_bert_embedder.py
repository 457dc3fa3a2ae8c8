"""A sentence encoder from a directory: the arithmetic against plain loops, and each broken directory by name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from swarmd import config
from swarmd.core.errors import Rejected
from swarmd.edges.embeddings import blocking_embedder
from swarmd.wordpiece import WordPiece
from tests.contract import bert_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytest.importorskip("numpy", reason="needs numpy: pip install 'swarmd[memory]'")

TEXTS = {
    "The lease expires.": ["[CLS]", "the", "lease", "expire", "##s", ".", "[SEP]"],
    "a worker": ["[CLS]", "a", "work", "##er", "[SEP]"],
    "CAFÉ of zebras": ["[CLS]", "caf", "##e", "of", "[UNK]", "[SEP]"],
    "": ["[CLS]", "[SEP]"],
}


def opened(folder: Path) -> Any:
    return blocking_embedder(f"model:{folder}", config.load("", {}))


def test_the_vectors_are_those_of_the_formulas(tmp_path: Path) -> None:
    made = opened(bert_model.write(tmp_path))
    found = made.embed(list(TEXTS))
    for vector, tokens in zip(found, TEXTS.values(), strict=True):
        assert vector == pytest.approx(bert_model.expected(tokens), abs=2e-6)
    assert made.dimension == bert_model.SIZE
    assert sum(x * x for x in found[0]) == pytest.approx(1.0, abs=1e-6)


def test_company_in_a_batch_changes_nothing_but_rounding(tmp_path: Path) -> None:
    made = opened(bert_model.write(tmp_path))
    texts = ["a " * n + "lease" for n in range(12)] * 30
    together = made.embed(texts)
    for text, vector in zip(texts[:12], together, strict=False):
        assert vector == pytest.approx(made.embed([text])[0], abs=1e-6)
    assert made.embed([]) == []


def test_a_long_text_is_embedded_by_its_beginning(tmp_path: Path) -> None:
    made = opened(bert_model.write(tmp_path))
    room = bert_model.POSITIONS - 2
    assert made.embed(["lease " * 5_000]) == made.embed(["lease " * room])
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 5}')
    shorter = opened(tmp_path)
    assert shorter.embed(["a lease of the worker"]) == shorter.embed(["a lease of"])


def test_the_id_is_that_of_the_weights_and_settings(tmp_path: Path) -> None:
    one, same = opened(bert_model.write(tmp_path / "one")), opened(bert_model.write(tmp_path / "same"))
    assert one.id == same.id
    assert one.id.startswith("bert-")
    assert one.id.endswith("-8")
    weights = bert_model.weights()
    weights["embeddings.LayerNorm.bias"][0] += 0.5
    (tmp_path / "same" / "model.safetensors").write_bytes(bert_model.safetensors(weights))
    assert opened(tmp_path / "same").id != one.id
    (tmp_path / "one" / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert opened(tmp_path / "one").id != one.id


def test_older_names_and_other_files_are_read_too(tmp_path: Path) -> None:
    """With the prefix `bert.`, with `gamma` and `beta`, with the vocabulary in `tokenizer.json`, pooled by [CLS]."""
    plain = opened(bert_model.write(tmp_path / "plain"))
    folder = bert_model.write(tmp_path / "older")
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    older = {name if name == "__metadata__" else "bert." + _older(name): entry for name, entry in header.items()}
    head = json.dumps(older).encode()
    (folder / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + data[8 + length :])
    (folder / "vocab.txt").unlink()
    vocabulary = {token: number for number, token in enumerate(bert_model.TOKENS)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordPiece", "vocab": vocabulary}}))
    assert opened(folder).embed(["a lease"]) == plain.embed(["a lease"])
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert opened(folder).embed(["a lease"]) != plain.embed(["a lease"])


def _older(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_is_read(tmp_path: Path, dtype: str) -> None:
    import numpy as np

    folder = bert_model.write(tmp_path)
    exact = opened(folder).embed(["the lease expires"])[0]
    header, body = {}, b""
    for name, values in bert_model.weights().items():
        array = np.array(values, "<f4")
        part = array.astype("<f2").tobytes() if dtype == "F16" else (array.view("<u4") >> 16).astype("<u2").tobytes()
        shape = bert_model.shapes()[name]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(part)]}
        body += part
    head = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + body)
    assert opened(folder).embed(["the lease expires"])[0] == pytest.approx(exact, abs=0.05)


def _cut(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-10])


def _not_a_number(folder: Path) -> None:
    weights = bert_model.weights()
    weights["embeddings.LayerNorm.bias"][3] = float("nan")
    (folder / "model.safetensors").write_bytes(bert_model.safetensors(weights))


def _lacking(folder: Path) -> None:
    weights = bert_model.weights()
    del weights["encoder.layer.1.output.dense.bias"]
    (folder / "model.safetensors").write_bytes(bert_model.safetensors(weights))


def _header(data: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(len(data).to_bytes(8, "little") + data)

    return write


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _text(name: str, text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    return write


def _config(**changes: Any) -> Callable[[Path], None]:
    return _text("config.json", json.dumps(bert_model.CONFIG | changes))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_without("config.json"), "config.json cannot be read"),
        (_without("vocab.txt"), "tokenizer.json cannot be read"),
        (_without("model.safetensors"), "has no model.safetensors"),
        (_text("config.json", "{"), "config.json cannot be read"),
        (_config(model_type="roberta"), "'roberta' is not supported"),
        (_config(hidden_act="silu"), "'silu'"),
        (_config(num_attention_heads=3), "do not divide"),
        (_config(hidden_size=0), "at least 1"),
        (_config(vocab_size=5), "vocabulary has 15 tokens"),
        (_config(intermediate_size=13), r"\[12, 8\], not \[13, 8\]"),
        (_config(num_hidden_layers=3), "lack encoder.layer.2"),
        (_text("vocab.txt", "the\nlease\n"), r"no \[UNK\]"),
        (_text("modules.json", '[{"type": "sentence_transformers.models.Dense"}]'), "'Dense' is not supported"),
        (_text("1_Pooling/config.json", '{"pooling_mode_max_tokens": true}'), "pooling is not supported"),
        (_text("sentence_bert_config.json", '{"max_seq_length": 2}'), "no room"),
        (_text("model.safetensors", "abc"), "cut off"),
        (_cut, "is cut off: .* 10 bytes"),
        (_not_a_number, "not finite"),
        (_lacking, "lack encoder.layer.1.output.dense.bias"),
        (_header(b"[]"), "header cannot be read"),
        (_header(b'{"a": {"dtype": "F8", "shape": [0], "data_offsets": [0, 0]}}'), "type F8"),
        (_header(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 0]}}'), "do not make the shape"),
        (_header(b'{"a": {"dtype": "F32", "shape": [0], "data_offsets": [4, 0]}}'), "nowhere"),
        (_header(b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}'), "cut off"),
    ],
)
def test_what_is_wrong_with_a_directory_is_said(tmp_path: Path, spoil: Callable[[Path], None], words: str) -> None:
    spoil(bert_model.write(tmp_path))
    with pytest.raises(Rejected, match=words) as caught:
        opened(tmp_path)
    assert caught.value.code == "bad_model"


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="no directory"):
        opened(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Workers, leases!", ["work", "##er", "##s", "[UNK]", "lease", "##s", "[UNK]"]),
        ("a\u0000 \ufffdlease\u200b\ud800", ["a", "lease"]),
        ("東京 a", ["[UNK]", "[UNK]", "a"]),
        ("x" * 101 + " a", ["[UNK]", "a"]),
        ("\u00a0the\tlease\r\n", ["the", "lease"]),
        ("workzz", ["[UNK]"]),
    ],
)
def test_words_become_pieces(text: str, tokens: list[str]) -> None:
    pieces = WordPiece({token: number for number, token in enumerate(bert_model.TOKENS)})
    names = [bert_model.TOKENS[number] for number in pieces.numbers(text, 64)]
    assert names == ["[CLS]", *tokens, "[SEP]"]
