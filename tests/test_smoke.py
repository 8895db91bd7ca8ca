"""The default model on a short text, from source to answer, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.models.locate import Located
from sekv_cli.main import run

LOG = """The harbour of Corrin lies behind a long bar of sand, and ships wait for the tide.
On the ninth of May the schooner Petrel came in with a broken mast and forty barrels of oil.
Her master, Josef Brandt, asked for a carpenter and was told that the nearest one lived in Dunmere.
The carpenter came on the twelfth with two apprentices and a cart of spruce.
He worked for six days, and on the seventh the Petrel left for Elsford with a new mast.
Nobody in Corrin had paid him, for Brandt had settled the bill with ten of his barrels.
"""


def test_the_default_model_reads_answers_and_cites(
    smollm2: Located, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answer is in the text, the passage that says it is cited word for word, and nothing of
    the document is read again."""
    source, store = tmp_path / "log.txt", tmp_path / "log.sekv"
    source.write_text(LOG, encoding="utf-8")
    assert run(["ingest", str(source), "-o", str(store), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "smollm2"
    question = "What was the name of the master of the Petrel?"
    line = ["ask", str(store), question, "--json", "--no-server"]
    line += ["--max-new-tokens", "16"]
    assert run(line) == 0
    printed = json.loads(capsys.readouterr().out)
    assert "Brandt" in printed["answer"]
    assert any("Josef Brandt" in cited["text"] for cited in printed["citations"])
    assert all(LOG[c["start"] : c["end"]] == c["text"] for c in printed["citations"])
    assert printed["usage"]["recomputed_document_tokens"] == 0
