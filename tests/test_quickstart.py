"""docs/quickstart.md runs as it is typed, from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import nmsparsity as nm
from nmsparsity.methods import methods
from tests.images import lightning_warnings

PAGE = Path(__file__).parents[1] / "docs" / "quickstart.md"
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)

pytestmark = [
    *lightning_warnings,
    pytest.mark.filterwarnings("ignore:.*`tensorboardX` has been removed"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


def test_every_block_runs_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    text = PAGE.read_text()
    names: dict[str, Any] = {"__name__": "quickstart"}
    try:
        for block in _BLOCK.finditer(text):
            above = text[: block.start(1)].count("\n")
            exec(compile("\n" * above + block[1], str(PAGE), "exec"), names)
    finally:
        methods._things.pop("noisy_ste", None)
    assert nm.verify(names["averaged"], {"encoder": "2:4"}).ok
    assert text.count("```python") == len(_BLOCK.findall(text)) > 8
