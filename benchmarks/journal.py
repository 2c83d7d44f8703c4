"""What a long measurement has found so far: an interrupted one goes on where it was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Journal:
    """Findings by name, beside the result file until it is written.

    A journal of other settings (rounds, patterns, machine, versions) is not gone on with.

    Args:
        result: the file that will be written in the end.
        settings: what the findings depend on.
    """

    def __init__(self, result: Path, settings: dict[str, Any]) -> None:
        self.path = result.with_suffix(".journal.json")
        self.settings = json.loads(json.dumps(settings))
        self.found: dict[str, Any] = {}
        try:
            said = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return
        if said.get("settings") == self.settings:
            self.found = said["found"]
            print(f"going on: {len(self.found)} found before in {self.path}", flush=True)

    def put(self, name: str, finding: Any) -> None:
        """Note one finding."""
        self.found[name] = finding
        beside = self.path.with_suffix(".tmp")
        beside.write_text(json.dumps({"settings": self.settings, "found": self.found}))
        os.replace(beside, self.path)

    def close(self, result: Path, text: str) -> None:
        """Write the result file; the journal has done its work."""
        beside = result.with_suffix(".tmp")
        beside.write_text(text)
        os.replace(beside, result)
        self.path.unlink(missing_ok=True)
        print(f"wrote {result}")
