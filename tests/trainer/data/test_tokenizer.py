"""The tokenizer loses nothing, in any script, and is the same wherever it is trained."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data import DataError, Tokenizer
from trainer.data.tokenizer import END_OF_TEXT

TRAINS = """
import sys
from pathlib import Path
from trainer.data import Tokenizer
texts = [file.read_text(encoding="utf-8") for file in sorted(Path(sys.argv[1]).glob("*/*.txt"))]
print(Tokenizer.train(texts, 400).digest())
"""


def test_texts_in_every_script_come_back(tokenizer: Tokenizer, texts: dict[str, str]) -> None:
    assert len({name.split("/")[0] for name in texts}) >= 10
    for name, text in texts.items():
        assert tokenizer.decode(tokenizer.encode(text)) == text, name


@given(text=st.text())
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos not in ids
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_text_that_spells_the_end_of_text_does_not_end_it(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(f"a {END_OF_TEXT} b")
    assert tokenizer.eos not in ids
    assert tokenizer.decode(ids) == f"a {END_OF_TEXT} b"


def test_a_batch_is_encoded_as_its_texts_are(tokenizer: Tokenizer, texts: dict[str, str]) -> None:
    batch = list(texts.values())
    assert tokenizer.encode_batch(batch) == [tokenizer.encode(text) for text in batch]


def test_training_gives_the_same_tokenizer_in_every_process(tokenizer: Tokenizer) -> None:
    folder = Path(__file__).parent / "texts"
    for hash_seed, threads in (("1", "1"), ("2", "2")):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "RAYON_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", TRAINS, str(folder)],
            env={**environment, "PYTHONPATH": str(Path(__file__).parents[3])},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert done.stdout.strip() == tokenizer.digest()


def test_it_is_saved_and_loaded_whole(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.digest() == tokenizer.digest()
    assert (loaded.vocab_size, loaded.eos) == (400, tokenizer.eos)
    assert [entry.name for entry in tmp_path.iterdir()] == ["tokenizer.json"]


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.json"):
        Tokenizer.load(tmp_path / "absent.json")
    (tmp_path / "foreign.json").write_text("{}")
    with pytest.raises(DataError, match=r"foreign\.json"):
        Tokenizer.load(tmp_path / "foreign.json")
    with pytest.raises(DataError, match=r"vocab_size=100: must be at least 257"):
        Tokenizer.train(["text"], 100)
