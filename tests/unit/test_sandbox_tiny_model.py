"""The tiny model's file: same bytes each time, and weights that spell the answer."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from sandbox.tiny_model import (
    ANSWER,
    LOOP_PROMPT,
    MESSAGE_END,
    OTHER_ANSWER,
    as_symbols,
    byte_symbols,
    split_words,
    write_tiny_model,
)


def generate(path: Path, last_prompt_token: str, limit: int) -> list[str]:
    """Greedy decoding with nothing but the file's embedding and output matrix."""
    reader = gguf.GGUFReader(path)
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    tensors = {tensor.name: np.asarray(tensor.data, dtype=np.float32) for tensor in reader.tensors}
    token_id = tokens.index(last_prompt_token)
    generated: list[str] = []
    while len(generated) < limit:
        token_id = int(np.argmax(tensors["output.weight"] @ tensors["token_embd.weight"][token_id]))
        if tokens[token_id] == MESSAGE_END:
            break
        generated.append(tokens[token_id])
    return generated


@pytest.mark.parametrize("answer", [ANSWER, OTHER_ANSWER])
def test_a_newline_starts_the_answer_which_ends_by_itself(tmp_path: Path, answer: str) -> None:
    model = write_tiny_model(tmp_path / "tiny.gguf", answer=answer)
    assert generate(model.path, "Ċ", 100) == [as_symbols(word) for word in split_words(answer)]
    assert "".join(split_words(answer)) == answer


def test_the_loop_token_follows_itself(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny.gguf")
    assert generate(model.path, as_symbols(LOOP_PROMPT), 20) == [as_symbols(LOOP_PROMPT)] * 20


def test_the_same_arguments_give_the_same_file(tmp_path: Path) -> None:
    first = write_tiny_model(tmp_path / "a.gguf")
    second = write_tiny_model(tmp_path / "b.gguf")
    other = write_tiny_model(tmp_path / "c.gguf", answer=OTHER_ANSWER)
    assert first.sha256 == second.sha256
    assert first.sha256 != other.sha256
    assert first.size_bytes == first.path.stat().st_size < 1024 * 1024


def test_padding_makes_the_file_larger_and_keeps_the_answer(tmp_path: Path) -> None:
    plain = write_tiny_model(tmp_path / "a.gguf")
    padded = write_tiny_model(tmp_path / "b.gguf", pad_mib=2)
    assert padded.size_bytes - plain.size_bytes >= 2 * 1024 * 1024
    assert generate(padded.path, "Ċ", 100) == generate(plain.path, "Ċ", 100)


def test_an_answer_that_bigrams_cannot_spell_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="twice"):
        write_tiny_model(tmp_path / "tiny.gguf", answer="One, two, three.")


def test_every_byte_has_a_symbol_of_its_own() -> None:
    symbols = byte_symbols()
    assert len(set(symbols)) == 256
    assert (symbols[ord(" ")], symbols[ord("\n")], symbols[ord("a")]) == ("Ġ", "Ċ", "a")
