"""Detectors as a user trains them: the command line, interruptions, processes, packed files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch.testing import assert_close

import nmsparsity as nm
from nmsparsity import cli
from nmsparsity.tasks.detection.draw import draw
from nmsparsity.tasks.detection.pixels import read_image
from nmsparsity.tasks.detection.predict import data_of, detector_of
from nmsparsity.tasks.evaluate import evaluate
from nmsparsity.tasks.train import Run, prepare
from tests.coco_images import edit, write_coco
from tests.images import lightning_warnings
from tests.test_tasks_train import StopAt, assert_same_bits

pytestmark = [
    *lightning_warnings,
    pytest.mark.filterwarnings("ignore:.*smaller than the logging"),
]
ROOT = Path(__file__).parents[1]


def words(folder: Path, *more: str, kind: str = "detection", run: str = "run") -> list[str]:
    """The command line of a small training on a generated set."""
    segments = kind == "segmentation"
    config = {
        "kind": kind,
        "task": {
            "backbone": {
                "name": "small_resnet10",
                "options": {"width": 16, "stem_stride": 2},
                "levels": [2, 3, 4],
            },
            "heads": {"pyramid": 16, "box": 32, "anchor_sizes": [12, 20, 28, 40]},
            "model_options": {"box_batch_size_per_image": 16, "rpn_batch_size_per_image": 32},
            "optimizer": {"lr": 0.02, "warmup_epochs": 0.5, "milestones": [1]},
        },
        "sparsity": {"pattern": "2:4", "method_options": {"decay": 0.01}, "print_report": False},
        "data": {
            "source": str(folder / "set"),
            "train": "train",
            "val": "val",
            "batch_size": 2,
            "min_size": 64,
            "max_size": 96,
            "scale": [0.8, 1.2],
            "workers": 0,
        },
        "trainer": {
            "max_epochs": 2,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "log_every_n_steps": 1,
        },
    }
    if segments:
        config["task"]["heads"] |= {"mask": 16, "mask_layers": 1}
    if not (folder / "set").exists():
        write_coco(folder / "set")
    recipe = folder / f"{kind}.yaml"
    recipe.write_text(yaml.safe_dump(config))
    return ["--config", str(recipe), "--run_dir", str(folder / run), *more]


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


@pytest.fixture(scope="module", params=["detection", "segmentation"])
def trained(request, tmp_path_factory) -> tuple[Path, str]:
    """A finished run of each kind: its folder, its kind."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "segmentation":
        more = ["--task.model_options.box_score_thresh", "0.0"]
    else:
        more = ["--task.model_options.box_score_thresh", "0.0", "--task.model", "faster_rcnn"]
    assert prepare(words(folder, *more, kind=request.param)).fit() is not None
    return folder, request.param


def test_a_run_leaves_predictions_and_pictures(trained: tuple[Path, str]) -> None:
    folder, kind = trained
    run = folder / "run"
    result = json.loads((run / "result.json").read_text())
    assert result["images"] == 5
    assert result["best_mask_ap" if kind == "segmentation" else "best_box_ap"] >= 0
    assert ("mask_ap" in result) == (kind == "segmentation")
    assert result["density"] < 0.75
    assert json.loads((run / "categories.json").read_text()) == {"3": "square", "7": "disc"}
    predictions = json.loads((run / "predictions.json").read_text())
    assert {entry["category_id"] for entry in predictions} <= {3, 7}
    assert all(("segmentation" in entry) == (kind == "segmentation") for entry in predictions)
    assert predictions, "every score counts here"
    assert size(run / "predictions.png")[0] > 200
    assert size(run / "curves.png")[0] > 200
    head = (run / "history.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss", "val/box_ap", "sparsity/sad"} <= set(head)


def test_anyone_can_rescore_the_predictions(trained: tuple[Path, str]) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    folder, kind = trained
    truth = COCO(str(folder / "set" / "instances_val.json"))
    found = truth.loadRes(str(folder / "run" / "predictions.json"))
    counting = COCOeval(truth, found, "segm" if kind == "segmentation" else "bbox")
    counting.evaluate()
    counting.accumulate()
    counting.summarize()
    result = json.loads((folder / "run" / "result.json").read_text())
    name = "mask" if kind == "segmentation" else "box"
    assert result[f"{name}_ap"] == pytest.approx(100 * counting.stats[0], abs=1e-3)
    assert result[f"{name}_ar"] == pytest.approx(100 * counting.stats[8], abs=1e-3)


def test_a_part_of_the_set_can_be_counted(trained: tuple[Path, str]) -> None:
    """Lightning: 1 is one batch, 1.0 are all."""
    folder, _ = trained
    counted, _ = evaluate([str(folder / "run"), "--trainer.limit_val_batches", "1"])
    assert 0 < counted["images"] < 5
    assert evaluate([str(folder / "run")])[0]["images"] == 5


def test_categories_of_other_data_are_refused(trained: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = trained
    write_coco(tmp_path / "set")
    for split in ("train", "val"):
        file = tmp_path / "set" / f"instances_{split}.json"
        file.write_text(file.read_text().replace('"square"', '"circle"'))
    with pytest.raises(ValueError, match=r"'circle'.*the detector learned .*'square'"):
        evaluate([str(folder / "run"), "--data.source", str(tmp_path / "set")])


def test_predictions_stay_when_nothing_is_validated(trained: tuple[Path, str]) -> None:
    """As when a run was killed between its last checkpoint and its result."""
    folder, kind = trained
    run = folder / "run"
    before, result = (run / "predictions.json").read_bytes(), (run / "result.json").read_bytes()
    (run / "result.json").unlink()
    more = ["--task.model_options.box_score_thresh", "0.0"]
    more += [] if kind == "segmentation" else ["--task.model", "faster_rcnn"]
    assert prepare(words(folder, *more, kind=kind)).fit() is not None
    assert (run / "predictions.json").read_bytes() == before
    assert json.loads((run / "result.json").read_bytes()) == json.loads(result)


def test_packed_says_the_same(trained: tuple[Path, str], capsys) -> None:
    folder, kind = trained
    packed = str(folder / "packed.safetensors")
    assert cli.main(["pack", str(folder / "run"), "-o", packed]) == 0
    assert cli.main(["inspect", packed]) == 0
    said = capsys.readouterr().out
    assert "model.rpn.head.conv.0.0.weight" not in said
    assert "rpn.head.conv.0.0.weight" in said
    one, _ = evaluate([str(folder / "run")])
    other, sentence = evaluate([packed])
    assert one == other
    assert sentence.startswith("box: AP ")
    assert ("\nmask: AP " in sentence) == (kind == "segmentation")
    model, categories, _ = detector_of(packed)
    assert categories == {3: "square", 7: "disc"}
    assert len(nm.verify(model, "2:4").sparse) > 10


def test_predict_draws_and_compares(trained: tuple[Path, str], tmp_path: Path, capsys) -> None:
    folder, _ = trained
    images = [str(folder / "set" / "val" / f"{number}.png") for number in (1, 2)]
    run, out = str(folder / "run"), str(tmp_path / "out")
    found = tmp_path / "found.json"
    options = ["-o", out, "--threshold", "0.0", "--json", str(found)]
    assert cli.main(["predict", run, *images, *options]) == 0
    assert capsys.readouterr().out.split() == [f"{out}/1.png", f"{out}/2.png"]
    drawn, plain = read_image(f"{out}/1.png"), read_image(images[0])
    assert drawn.shape == plain.shape
    assert not torch.equal(drawn, plain)
    entries = json.loads(found.read_text())
    assert {entry["file_name"] for entry in entries} <= set(images)
    assert {entry["category_id"] for entry in entries} <= {3, 7}
    compare = ["--compare", run, "-o", str(tmp_path / "two")]
    assert cli.main(["predict", run, images[0], *compare]) == 0
    assert size(tmp_path / "two" / "1.png")[0] > 2 * plain.shape[2]
    assert cli.main(["predict", run, *compare, "--grid", "2"]) == 0
    assert (tmp_path / "two" / "grid.png").exists()
    assert cli.main(["predict", run, images[0], "-o", str(folder / "set" / "val")]) == 2
    assert "would be written over" in capsys.readouterr().err


def test_predict_takes_folders_and_goes_on_after_a_damaged_image(
    trained: tuple[Path, str], tmp_path: Path, capsys
) -> None:
    folder, _ = trained
    (tmp_path / "in").mkdir()
    for name in ("1.png", "2.png"):
        (tmp_path / "in" / name).write_bytes((folder / "set" / "val" / name).read_bytes())
    (tmp_path / "in" / "notes.txt").write_text("no image")
    line = ["predict", str(folder / "run"), str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    assert cli.main(line) == 0
    assert len(capsys.readouterr().out.split()) == 2
    (tmp_path / "in" / "1.png").write_bytes(b"no image")
    found = tmp_path / "new" / "found.json"
    line[3:] = ["-o", str(tmp_path / "again"), "--json", str(found), "--threshold", "0"]
    assert cli.main(line) == 2
    said = capsys.readouterr().err
    assert "1 of 2 images could not be read" in said
    assert "1.png: not to be read as an image" in said
    assert [path.name for path in (tmp_path / "again").iterdir()] == ["2.png"]
    assert {entry["image_id"] for entry in json.loads(found.read_text())} == {2}
    (tmp_path / "empty").mkdir()
    assert cli.main([*line[:2], str(tmp_path / "empty"), *line[3:]]) == 2
    assert "no image file in this folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*line[:-1], "7"])
    assert "--threshold" in capsys.readouterr().err


def test_a_run_without_validation_has_a_result_that_any_json_reader_takes(tmp_path: Path) -> None:
    more = ["--trainer.limit_val_batches", "0", "--trainer.max_epochs", "1"]
    prepare(words(tmp_path, *more)).fit()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (tmp_path / "run" / "result.json").read_text()
    assert json.loads(text, parse_constant=refuse)["best_box_ap"] is None


def test_predict_refuses_others(tmp_path: Path, capsys) -> None:
    torch.save({"a": torch.zeros(2, 2)}, tmp_path / "other.pt")
    assert cli.main(["predict", str(tmp_path / "other.pt"), "x.png"]) == 2
    assert "want a detector or segmenter" in capsys.readouterr().err


def test_compressed_finds_the_same(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    model, _, _ = detector_of(str(folder / "run"))
    torch.manual_seed(0)
    images = [torch.rand(3, 64, 96), torch.rand(3, 80, 80)]
    with torch.no_grad():
        want = model(images)
        packed = nm.compress(model, backend="native" if nm.native.available() else "reference")
        got = packed(images)
    report = nm.compressed_report(packed)
    used = {row.layer for row in report.rows if row.kernel is not None}
    assert any(name.startswith("backbone.body") for name in used)
    assert any(name.startswith("backbone.fpn") for name in used)
    assert any(name.startswith("roi_heads.box_head") for name in used)
    assert any(name.startswith("rpn.head.conv") for name in used)
    for one, other in zip(want, got, strict=True):
        assert len(one["boxes"]) == len(other["boxes"]) > 0
        assert_close(other["boxes"], one["boxes"], rtol=1e-3, atol=1e-2)
        assert_close(other["scores"], one["scores"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("step", [2, 5])
def test_sigterm_and_the_same_command_again_is_bit_identical(step: int, tmp_path: Path) -> None:
    whole = prepare(words(tmp_path, run="whole", kind="segmentation"))
    whole.fit()
    stopped = prepare(words(tmp_path, kind="segmentation"), [StopAt(step)])
    assert stopped.fit() is None
    # What others drew in the meantime does not matter.
    torch.manual_seed(99)
    resumed = prepare(words(tmp_path, kind="segmentation"))
    assert resumed.resume is not None
    resumed.fit()
    assert resumed.trainer.global_step == whole.trainer.global_step == 8
    assert_same_bits(whole, resumed)
    assert resumed.task.counted == whole.task.counted
    assert resumed.task.results == whole.task.results


def test_kill_9_and_the_same_command_again_is_bit_identical(tmp_path: Path) -> None:
    whole = prepare(words(tmp_path, run="whole"))
    whole.fit()
    command = [sys.executable, "-m", "nmsparsity", "train", *words(tmp_path)]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (tmp_path / "run" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (tmp_path / "run" / "result.json").exists(), "killed before its end"
    resumed = prepare(words(tmp_path))
    assert resumed.resume is not None
    resumed.fit()
    assert_same_bits(whole, resumed)
    assert resumed.task.results == whole.task.results


class Losses(Callback):
    """Writes the loss of every step on every process."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, out, *_) -> None:
        self.losses.append(float(out["loss"]))
        Path(self.folder, f"losses{trainer.global_rank}.json").write_text(json.dumps(self.losses))


FULL = {
    # So many are always there: torchvision divides by how many were drawn.
    "faster_rcnn": [
        *("--task.model_options.box_batch_size_per_image", "4"),
        *("--task.model_options.rpn_batch_size_per_image", "16"),
    ],
    "retinanet": [],
}


@pytest.mark.parametrize("model", FULL)
def test_two_processes_have_the_loss_of_one(model: str, tmp_path: Path) -> None:
    """The same images a step, on one process or two: the mean of the losses is the loss."""
    # Of one size: else other images would be padded together.
    write_coco(tmp_path / "set", shapes=((64, 64),))
    options = ["--task.model", model, "--task.backbone.norm", "frozen", "--data.batch_size", "4"]
    options += ["--data.scale", "[1,1]"]
    if model == "retinanet":
        options += ["--task.heads.anchor_sizes", "[12,16,24,32,48]"]
        options += ["--task.model_options", "{}"]
    one = prepare(words(tmp_path, *options, *FULL[model], run="one"), [Losses(str(tmp_path))])
    (tmp_path / "two").mkdir()
    one.fit()
    code = (
        "import sys; from nmsparsity.tasks.train import prepare;"
        "from tests.test_tasks_detection_train import Losses;"
        f"prepare(sys.argv[1:], [Losses({str(tmp_path / 'two')!r})]).fit()"
    )
    more = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    command = [sys.executable, "-c", code, *words(tmp_path, *options, *FULL[model], *more)]
    script = tmp_path / "two.py"
    script.write_text(code)
    command = [sys.executable, str(script), *command[3:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    subprocess.run(
        command, cwd=ROOT, env=environment, check=True, timeout=300, stdout=subprocess.DEVNULL
    )
    want = json.loads((tmp_path / "losses0.json").read_text())
    parts = [json.loads((tmp_path / "two" / f"losses{r}.json").read_text()) for r in (0, 1)]
    got = [(a + b) / 2 for a, b in zip(*parts, strict=True)]
    assert len(want) == 4
    assert got == pytest.approx(want, rel=1e-4)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["images"] == 5


def test_synchronised_norms_on_one_process_are_batch_norms(tmp_path: Path) -> None:
    runs = []
    for norm in ("batch", "sync"):
        more = ["--task.backbone.norm", norm, "--trainer.max_epochs", "1"]
        runs.append(prepare(words(tmp_path, *more, run=norm)))
        assert runs[-1].fit() is not None
    assert_same_bits(*runs)


def test_synchronised_norms_on_cpu_processes_end_before_training(tmp_path: Path) -> None:
    run = prepare(words(tmp_path, "--task.backbone.norm", "sync"))
    run.task._trainer = SimpleNamespace(world_size=2)
    with pytest.raises(ValueError, match=r"SyncBatchNorm runs on GPUs only.* use batch"):
        run.task.setup("fit")


def test_a_training_learns(tmp_path: Path) -> None:
    """Overfits eight images in a minute or less."""
    write_coco(tmp_path / "set", train=8)
    (tmp_path / "set" / "instances_val.json").write_text(
        (tmp_path / "set" / "instances_train.json").read_text()
    )
    for image in (tmp_path / "set" / "train").iterdir():
        (tmp_path / "set" / "val" / image.name).write_bytes(image.read_bytes())
    more = ["--trainer.max_epochs", "30", "--trainer.check_val_every_n_epoch", "30"]
    more += ["--data.scale", "[1,1]", "--task.optimizer.milestones", "null"]
    more += ["--trainer.gradient_clip_val", "5"]
    run = prepare(words(tmp_path, *more))
    result = run.fit()
    assert result is not None
    assert result["box_ap50"] > 60
    assert nm.verify(run.task, "2:4").ok


def test_bad_data_ends_before_training(tmp_path: Path, capsys) -> None:
    line = words(tmp_path)
    edit(tmp_path / "set" / "instances_train.json", lambda c: c["images"][0].update(width=5))
    assert cli.main(["train", *line]) == 2
    said = capsys.readouterr().err
    assert "are not of the size the json says" in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_a_loss_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    run = prepare(words(tmp_path, "--task.optimizer.lr", "1e6"))
    with pytest.raises(ValueError, match=r"loss is not finite after .* lower --task"):
        run.fit()


def test_the_learning_rate_falls_in_steps(tmp_path: Path) -> None:
    rates: list[float] = []

    class Look(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    run: Run = prepare(words(tmp_path), [Look()])
    run.fit()
    assert rates == pytest.approx([2e-5, 0.01001, 0.02, 0.02, 0.002, 0.002, 0.002, 0.002])


def test_options_with_a_setting_of_their_own_are_refused(tmp_path: Path, capsys) -> None:
    for name, setting in (("min_size", "--data.min_size"), ("max_detections", "--task.max_")):
        assert cli.main(["train", *words(tmp_path, f"--task.model_options.{name}", "5")]) == 2
        assert f"own: {setting}" in capsys.readouterr().err


def test_null_is_a_setting_too(tmp_path: Path) -> None:
    """Images in their own size: what stands in the file says so, the default is another."""
    line = words(tmp_path, "--data.min_size", "null", "--trainer.max_epochs", "1")
    result = prepare(line).fit()
    assert result is not None
    assert (
        yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]["min_size"] is None
    )
    counted, _ = evaluate([str(tmp_path / "run" / "last.ckpt")])
    assert counted == {name: result[name] for name in counted}
    model, _, config = detector_of(str(tmp_path / "run"))
    images, _ = model.transform([torch.rand(3, 50, 70)])
    assert images.image_sizes == [(50, 70)]
    assert data_of(config).min_size is None


def test_drawing_keeps_below_the_threshold_off() -> None:
    blank = torch.zeros(3, 30, 30, dtype=torch.uint8)
    found = {
        "boxes": torch.tensor([[2.0, 2.0, 10.0, 10.0], [15.0, 15.0, 28.0, 28.0]]),
        "labels": torch.tensor([1, 2]),
        "scores": torch.tensor([0.9, 0.1]),
        "masks": torch.ones(2, 1, 30, 30),
    }
    boxes = {name: found[name] for name in ("boxes", "labels", "scores")}
    drawn = draw(blank, boxes, ["a", "b"])
    assert drawn[:, 2, 5].any()
    assert not drawn[:, 15:, 15:].any()
    assert draw(blank, found, ["a", "b"]).any(0).all(), "the mask covers the image"
    assert torch.equal(draw(blank, boxes, ["a", "b"], threshold=0.95), blank)


def test_of_masks_that_overlap_the_better_one_is_on_top() -> None:
    blank = torch.full((3, 20, 20), 200, dtype=torch.uint8)
    masks = torch.zeros(2, 1, 20, 20)
    masks[0, :, 2:10, 2:10] = masks[1, :, 6:18, 6:18] = 1
    boxes = torch.tensor([[2.0, 2, 10, 10], [6, 6, 18, 18]])
    there = {"boxes": boxes, "labels": torch.tensor([1, 1])}
    drawn = draw(blank, {**there, "masks": masks}, ["cell"])
    # Inside both masks, inside one, away from the lines of the boxes.
    assert torch.equal(drawn[:, 8, 8], drawn[:, 4, 4])
    assert not torch.equal(drawn[:, 8, 8], drawn[:, 14, 14])
    assert drawn[:, 14, 14].max() > 100
