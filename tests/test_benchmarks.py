"""The scripts of benchmarks/: small ones run to the end; interrupted ones go on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from nmsparsity.bench.rounds import interleaved

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def script(name: str, *words: str) -> str:
    command = [sys.executable, str(FOLDER / f"{name}.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_layers_and_their_scaling(tmp_path: Path) -> None:
    out = tmp_path / "layers.md"
    words = ["--only", "512 to 512, 16 tok", "--rounds", "1", "--patterns", "2:4", "--threads"]
    script("layers", *words, "2", "--out", str(out))
    text = out.read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("| linear 512 to 512")]
    assert line.count("scales") == 2
    assert float(line.split("|")[-2]) < 1e-5
    assert "| linear, 16 tokens | " in text
    for fact in ("Machine: ", "Instruction set: ", "Command: `python benchmarks/layers.py --only"):
        assert fact in text
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["layers.md"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="the peaks are a C++ program")
def test_roofline(tmp_path: Path) -> None:
    out = tmp_path / "roof.md"
    script("roofline", "--only", "512 to 512, 16 tok", "--rounds", "1", "--out", str(out))
    text = out.read_text()
    limit = float(text.split("Measured limits: ")[1].split(" ")[0])
    assert limit > 1
    assert "| linear 512 to 512, 16 tokens | " in text
    assert (tmp_path / "roof.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_measurement_goes_on(tmp_path: Path) -> None:
    from journal import Journal

    result, settings = tmp_path / "found.md", {"rounds": 3, "patterns": ("2:4",)}
    first = Journal(result, settings)
    first.put("fc", {"ms": 1.5})
    assert Journal(result, settings).found == {"fc": {"ms": 1.5}}
    assert Journal(result, settings | {"rounds": 4}).found == {}
    first.path.write_text("half a")
    assert Journal(result, settings).found == {}
    first.close(result, "done")
    assert [path.name for path in tmp_path.iterdir()] == ["found.md"]


@dataclass(frozen=True)
class Training:
    """For `ledger.do_all`, which pickles it."""

    key: str
    needs: str | None = None


def trained(run: Training, times: int) -> dict[str, Any]:
    return {"key": run.key, "made of": run.needs, "times": times}


def test_only_missing_trainings_are_done_and_in_order(tmp_path: Path, capsys) -> None:
    from ledger import append, do_all, read_lines

    path = tmp_path / "deep" / "found.jsonl"
    assert read_lines(path) == []
    append(path, {"key": "a"})
    with path.open("a") as file:
        file.write('{"key": "half')
    assert read_lines(path) == [{"key": "a"}]
    path.write_text('{"key": "a"}\n')
    runs = [Training("c", "b"), Training("a"), Training("b")]
    do_all(runs, partial(trained, times=2), path, 1, lambda line: f"did {line['key']}")
    assert capsys.readouterr().out == "1 runs done, 2 to do\ndid b\ndid c\n"
    assert read_lines(path)[1:] == [
        {"key": "b", "made of": None, "times": 2},
        {"key": "c", "made of": "b", "times": 2},
    ]
    with pytest.raises(SystemExit, match="e needs d"):
        do_all([Training("e", "d")], partial(trained, times=2), path, 1, str)


def test_a_step_with_a_cache_is_a_step_of_the_whole() -> None:
    from decoder import Decoder

    torch.manual_seed(0)
    model = Decoder(words=50, width=16, heads=2, depth=2).eval()
    with torch.no_grad():
        empty = [torch.zeros(1, 2, 0, 8) for _ in range(4)]
        _, *past = model(torch.tensor([[3]]), torch.tensor([[0]]), *empty)
        scores, *present = model(torch.tensor([[7]]), torch.tensor([[1]]), *past)
        x = model.words(torch.tensor([[3, 7]])) + model.places(torch.tensor([[0, 1]]))
        for block in model.blocks:
            q, k, v = (
                one.unflatten(-1, (2, -1)).transpose(1, 2)
                for one in block.qkv(block.norm1(x)).chunk(3, -1)
            )
            seen = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + block.out(seen.transpose(1, 2).flatten(2))
            x = x + block.down(block.gelu(block.up(block.norm2(x))))
    assert_close(scores[:, 0], model.head(model.norm(x))[:, 1])
    assert [tuple(one.shape) for one in present] == 4 * [(1, 2, 2, 8)]


def test_generation_by_every_engine_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import decoder

    monkeypatch.delitem(decoder.STARTS, "compile")  # It takes a minute; the script runs it.
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    small = decoder.Decoder(words=50, width=64, heads=2, depth=1)
    found = decoder.benchmark(["2:4"], 1, 1, small)
    torch.set_num_threads(threads)
    assert {"torch", "2:4"} <= {row.name for row in found.rows}
    assert not [why for why in found.missing.values() if "not installed" not in why]
    assert all(row.error < 1e-4 for row in found.rows)
    assert found.batch == decoder.STEPS


def test_the_written_translator_is_marian() -> None:
    import translator
    from transformers import MarianConfig, MarianMTModel
    from written import Written

    torch.manual_seed(0)
    config = MarianConfig(
        **{"vocab_size": 40, "d_model": 16, "max_position_embeddings": 32},
        **{"encoder_layers": 2, "decoder_layers": 2, "scale_embedding": True},
        **{"encoder_attention_heads": 2, "decoder_attention_heads": 2},
        **{"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "activation_function": "relu"},
        **{"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
    )
    model = MarianMTModel(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter.data, std=0.6)
    words = model.get_input_embeddings().weight.data
    words.copy_(torch.nn.functional.normalize(words))
    written, ids = Written(model).eval(), translator.sentences(4, 40)
    encode, step = translator.steps_of(written)
    assert int((ids == 0).sum()) == 2 * translator.TOKENS // 2
    tokens = written.greedy(ids, 6, encode, step)
    assert len({tuple(row) for row in tokens.tolist()}) == 4, "sources matter"
    with torch.no_grad():
        given = torch.cat([torch.zeros(4, 1, dtype=torch.int64), tokens[:, :-1]], 1)
        wanted = model(input_ids=ids, attention_mask=ids.ne(0).long(), decoder_input_ids=given)
    scores = wanted.logits[:, :, 1:]  # The padding is never a token.
    assert torch.equal(scores.argmax(-1) + 1, tokens)


def test_a_packed_translator_and_where_its_time_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    import translator

    monkeypatch.setattr(translator, "STEPS", 3)
    threads = torch.get_num_threads()
    words = ["--only", "Multi30k", "--rounds", "1", "--patterns", "2:4", "--against", "torch"]
    monkeypatch.setattr(sys, "argv", ["translator.py", *words])
    found = json.loads(json.dumps(translator.measure("multi30k_dense", 2, translator.parse())))
    torch.set_num_threads(threads)
    assert set(found["rows"]) == {"torch", "generate", "2:4", "generate, 2:4"}
    assert found["same"]["torch"] == "6 of 6"
    shares = found["more"]["2:4"]["shares"]
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares.values()) > 0, shares
    lines = translator.section("Multi30k, batch 2", found)
    assert lines[-1].startswith("| 2:4 | ")
    assert [line for line in lines if line.startswith("| generate, 2:4 | ")]


def test_what_models_and_memory_say() -> None:
    import memory
    import models

    made, x = torch.nn.Linear(4, 3), torch.ones(2, 4)
    from nmsparsity import benchmark

    found = benchmark(torch.nn.Sequential(made), x, patterns="2:4", against=["torch"], rounds=1)
    facts: dict[str, Any] = json.loads(json.dumps(models.facts(found)))
    lines = models.section("net", facts)
    assert lines[1] == "## net"
    assert lines[-1].startswith("| 2:4 | ")
    assert memory.held(made) == 4 * (12 + 3)
    tied = torch.nn.Sequential(made, made)
    assert memory.held(tied) == 4 * (12 + 3)
    assert set(memory.CASES.values()) == set(models.MODELS)


def test_calls_that_time_themselves() -> None:
    class Elsewhere:
        def __call__(self) -> object:
            return None

        def seconds(self, repeats: int) -> float:
            return 2.0 * repeats

    assert interleaved({"a": Elsewhere()}, 3)["a"].turns == (2.0, 2.0, 2.0)


def test_the_report_of_detectors(tmp_path: Path) -> None:
    import detection_report

    names = ("box_ap", "box_ap50", "box_ap75")
    lines = []
    for seed, method, pattern, ap in [
        *((0, "dense", "", 50.0), (1, "dense", "", 52.0)),
        *((0, "sr_ste", "2:4", 51.0), (1, "sr_ste", "2:4", 51.5)),
    ]:
        result = dict.fromkeys(names, ap) | {"density": 0.5, "cpu_seconds": 60.0}
        curve = [{"epoch": 1.0, "train/loss": 1.0}, {"epoch": 2.0, "val/box_ap": ap}]
        sizes = {"packed_bytes": 600, "dense_bytes": 1000, "backbone": "random"}
        key = {"set": "bccd", "method": method, "pattern": pattern, "seed": seed}
        lines.append({**key, "result": result, "curve": curve, **sizes, "command": "python x"})
    rows = [
        {"name": "torch", "packed": False, "ms": 12.0, "low": 11.0, "high": 13.0, "error": 0.0},
        {"name": "packed", "packed": True, "ms": 6.0, "low": 5.0, "high": 7.0, "error": None},
    ]
    latency = {"key": "k", "set": "bccd", "pattern": "2:4", "image": [3, 4, 5], "rows": rows}
    latency |= {"missing": {"compile": "no compiler"}, "command": "python y"}
    detection_report.write_report(tmp_path / "found.jsonl", lines, [latency])
    text = (tmp_path / "found.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("| 2:4 | ")]
    assert "| 51.25 ± 0.25 |" in line
    assert "| 0.25 ± 0.75 |" in line, "by seed: 1.0 and -0.5"
    assert "600 (60%)" in line
    assert "| bccd, 2:4 | 4x5 | packed | 6.0 | 5.0 to 7.0 | 2.00 | 2.00 | - |" in text
    assert "bccd, 2:4: compile was not run: no compiler" in text
    assert (tmp_path / "found-bccd.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_of_translators(tmp_path: Path) -> None:
    import translation_report

    lines = []
    for seed, variant, pattern, bleu in [
        *((0, "dense", "", 30.0), (1, "dense", "", 32.0)),
        *((0, "sr_ste", "2:4", 31.0), (1, "sr_ste", "2:4", 31.5)),
    ]:
        key = {"variant": variant, "pattern": pattern, "seed": seed}
        decay = None if variant == "dense" else 2e-4
        scores = {"bleu": bleu, "chrf": 50.0, "perplexity": 8.0, "sentences": 1000.0}
        facts = {"split": "test", "averaged": False, "epochs": 3, "density": 0.5}
        facts["overrides"] = ["--trainer.precision", "bf16-mixed"]
        more = {"sad": 5, "cpu_seconds": 60.0, "torch": "2", "signatures": ["b", "c"]}
        lines.append({**key, "decay": decay, **scores, **facts, **more, "command": "python x"})
    translation_report.write_report(tmp_path / "found.jsonl", lines)
    text = (tmp_path / "found.md").read_text()
    assert "mean ± standard error of 2 seeds" in text
    assert "3 epochs, with --trainer.precision bf16-mixed. " in text
    assert "| 2:4 | sr_ste λ=0.0002 | 31.25 ± 0.25 | 50.00 ± 0.00 |" in text
    assert "| 2:4 | sr_ste λ=0.0002 | 0.25 ± 0.75 |" in text, "by seed: 1.0 and -0.5"
    assert (tmp_path / "found-bleu.png").read_bytes().startswith(b"\x89PNG")
    translation_report.write_report(tmp_path / "one.jsonl", lines[::2])
    assert "one seed" in (tmp_path / "one.md").read_text()
