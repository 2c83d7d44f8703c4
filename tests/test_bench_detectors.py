"""``nmsparsity bench`` on detectors: what is measured on what, and how detections differ."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nmsparsity as nm
from nmsparsity import cli
from nmsparsity.bench.error import detections_error, error
from nmsparsity.bench.subject import subject
from nmsparsity.tasks.train import prepare
from tests.images import lightning_warnings
from tests.test_tasks_detection_train import words

pytestmark = [
    *lightning_warnings,
    pytest.mark.filterwarnings("ignore:.*smaller than the logging"),
]
QUICK = ["--against", "torch", "--rounds", "1", "--threads", "1"]


@pytest.fixture(scope="module", params=["detection", "segmentation"])
def run(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of each kind."""
    folder = tmp_path_factory.mktemp(request.param)
    more = ["--trainer.max_epochs", "1", "--task.model_options.box_score_thresh", "0.0"]
    assert prepare(words(folder, *more, kind=request.param)).fit() is not None
    return folder / "run"


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_a_run_and_a_packed_file_are_measured_on_validation_images(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = tmp_path / "packed.safetensors"
    assert cli.main(["pack", str(run), "-o", str(packed)]) == 0
    for file in (run, packed):
        found = subject(str(file))
        assert [list(its.shape) for its in found.batch(7)][:2] == [[3, 64, 96], [3, 96, 64]]
        assert torch.equal(found.batch(7)[5], found.batch(1)[0]), "again from the first"
        capsys.readouterr()
        command = [str(file), *QUICK, "--batch", "2", "--backend", "reference"]
        target = tmp_path / "found.json"
        assert cli.main(["bench", *command, "--json", str(target)]) == 0
        said = capsys.readouterr().out
        assert f"rcnn of {file}, batch 2: 1 turns each" in said
        assert "backbone.fpn.inner_blocks.0.0" in said
        rows = json.loads(target.read_text())["found"][0]["rows"]
        assert [row["name"] for row in rows] == ["torch", "packed"]
        assert 0 < rows[1]["error"] < 1e-3


def test_without_the_data_it_says_what_to_give(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    away = run.parent / "away"
    (run.parent / "set").rename(away)
    try:
        assert cli.main(["bench", str(run), *QUICK]) == 2
        assert "give --input, such as --input 3x480x640, for random" in capsys.readouterr().err
        assert subject(str(run), (3, 40, 50)).batch(2)[1].shape == (3, 40, 50)
        assert cli.main(["bench", str(run), *QUICK, "--input", "1x40x50"]) == 2
        assert "--input 1x40x50: want 3xHEIGHTxWIDTH" in capsys.readouterr().err
        more = ["--input", "3x40x50", "--batch", "2", "--micro-batch", "1"]
        assert cli.main(["bench", str(run), *QUICK, *more]) == 2
        assert "--micro-batch: a detector takes a list of images" in capsys.readouterr().err
    finally:
        away.rename(run.parent / "set")


def test_full_sizes_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    found = subject("detection/retinanet", (3, 64, 96))
    assert found.model.backbone.body.layer4[2].conv3.out_channels == 2048
    assert torch.equal(found.batch(2)[1], found.batch(2)[1])
    assert not torch.equal(*found.batch(2))
    assert cli.main(["bench", "detection/faster_rcn", *QUICK]) == 2
    assert "did you mean 'detection/faster_rcnn'" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_every_engine_runs_a_detector_or_says_why(run: Path) -> None:
    pytest.importorskip("onnxruntime")
    about = subject(str(run))
    found = nm.benchmark(
        about.model, about.batch(1), against=["channels_last", "onnxruntime"], rounds=1, threads=1
    )
    assert [row.name for row in found.rows] == ["torch", "channels_last", "onnxruntime", "packed"]
    assert all(row.error < 1e-3 for row in found.rows), found.table()


def detections(*rows: tuple[float, ...], label: int = 1) -> dict[str, Tensor]:
    """Each row: left, top, right, bottom, score."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    labels = torch.full((len(rows),), label)
    return {"boxes": table[:, :4], "labels": labels, "scores": table[:, 4]}


FAR, NEAR = (50.0, 50.0, 80.0, 100.0, 0.5), (0.0, 0.0, 10.0, 10.0, 0.875)


def test_detections_in_another_order_are_the_same() -> None:
    assert detections_error(detections(FAR, NEAR), detections(NEAR, FAR)) == 0
    empty = detections()
    assert math.isnan(detections_error(empty, empty))
    assert math.isnan(error([empty], [empty]))
    assert error([empty, detections(FAR)], [empty, detections(FAR)]) == 0


def test_detections_that_differ() -> None:
    moved = (*FAR[:2], 90.0, 100.0, 0.5)
    assert detections_error(detections(moved), detections(FAR)) == pytest.approx(0.1)
    assert detections_error(detections((*FAR[:4], 0.25)), detections(FAR)) == 0.25
    # One that is missing might have had the lowest score of those that are there.
    assert detections_error(detections(FAR), detections(FAR, NEAR)) == 0.375
    assert detections_error(detections(NEAR), detections(NEAR, FAR)) == 0
    other = detections_error(detections(NEAR, label=2), detections(NEAR, (*FAR[:4], 0.25)))
    assert other == 0.625, "another label is another detection"
    masks = [{**detections(NEAR), "masks": torch.full((1, 1, 4, 4), v)} for v in (0.0, 0.5)]
    assert detections_error(*masks) == 0.5


def test_detections_side_by_side_as_engines_give_them() -> None:
    flat = [x for its in (detections(FAR), detections(NEAR)) for x in its.values()]
    assert error(flat, [detections(FAR), detections(NEAR)]) == 0
    with pytest.raises(ValueError, match="3 tensors of output, dense torch has 6"):
        error(flat[:3], [detections(FAR), detections(NEAR)])


def test_not_a_number_is_an_error_without_bound() -> None:
    assert error(torch.tensor([math.nan]), torch.ones(1)) == math.inf
    assert math.isnan(error([], []))


def test_detections_do_not_go_through_list_inputs_of_others() -> None:
    """A list of matrices is no batch of images."""

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x: list[Tensor]) -> Tensor:
            return self.inner(x[0])

    found = nm.benchmark(
        First(), [torch.ones(2, 8)], patterns="2:4", against=["channels_last"], rounds=1
    )
    assert "no input has four dimensions" in found.missing["channels_last"]
    assert found.batch == 1
