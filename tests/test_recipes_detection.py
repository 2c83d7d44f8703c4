"""Every recipe of detection and segmentation is parsed, built and run for two steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torchvision.models import resnet50

import nmsparsity as nm
from nmsparsity.tasks.models import classifier
from nmsparsity.tasks.train import prepare
from tests.coco_images import write_coco
from tests.images import lightning_warnings, pictures, write_parquet

pytestmark = [*lightning_warnings, pytest.mark.filterwarnings("ignore:.*smaller than the logging")]
RECIPES = Path(__file__).parents[1] / "recipes"
HERE = [
    *("detection/bccd_dense", "detection/bccd_2of4"),
    *("detection/nuclei_dense", "detection/nuclei_2of4"),
    *("segmentation/nuclei_dense", "segmentation/nuclei_2of4"),
]
COCO = [
    *(f"detection/faster_rcnn_r50_{tag}" for tag in ("dense", "2of4", "2of8")),
    *(f"segmentation/mask_rcnn_r50_{tag}" for tag in ("dense", "2of4", "2of8")),
]
BACKBONES = ["detection/backbone_dense", "detection/backbone_2of4"]
BASES = ["detection/coco", "segmentation/coco"]
TWO_STEPS = [
    *("--trainer.fast_dev_run", "2", "--trainer.accelerator", "cpu"),
    *("--trainer.enable_progress_bar", "false", "--sparsity.print_report", "false"),
]
SMALL = ["--data.min_size", "64", "--data.max_size", "96", "--data.batch_size", "2"]
# Convolutions and linear layers that are trained, less the predictors.
SPARSE = {"faster_rcnn": 42 + 8 + 1 + 2, "mask_rcnn": 42 + 8 + 1 + 2 + 4 + 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with small sets of the names that the recipes ask for, and trained backbones."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("bccd", "nuclei"):
        write_coco(folder / name, train=12)
    coco = write_coco(folder / "coco")
    (coco / "annotations").mkdir()
    for split in ("train", "val"):
        (coco / split).rename(coco / f"{split}2017")
        name = f"instances_{split}2017.json"
        (coco / f"instances_{split}.json").rename(coco / "annotations" / name)
    for split, count in (("train", 300), ("test", 30)):
        write_parquet(folder / "cifar10", split, *pictures(count, 32, 3))
    torch.save(resnet50().state_dict(), folder / "resnet50.pth")
    small = classifier("small_resnet10", 10, width=16, stem_stride=2)
    torch.save(small.state_dict(), folder / "small.pth")
    return folder


def settings(recipe: str) -> dict:
    return yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())


def configs(*recipes: str) -> list[str]:
    return [word for name in recipes for word in ("--config", str(RECIPES / f"{name}.yaml"))]


def test_all_recipes_are_tested() -> None:
    there = {
        f"{kind}/{path.stem}"
        for kind in ("detection", "segmentation")
        for path in (RECIPES / kind).glob("*.yaml")
    }
    assert there == {*HERE, *COCO, *BACKBONES, *BASES}


def check_sparsity(run, recipe: str, count: int | None = None) -> None:
    sparse = nm.verify(run.task).sparse
    sparsity = settings(recipe)["sparsity"]
    if sparsity["method"] == "dense":
        assert sparse == []
        return
    assert {row.pattern for row in sparse} == {sparsity["pattern"]}
    assert not [
        row.name for row in sparse if "logits" in row.name or "pred" in row.name.split(".")[-2]
    ]
    if count is not None:
        assert len(sparse) == count


@pytest.mark.parametrize("recipe", HERE)
def test_recipes_for_here(recipe: str, root: Path) -> None:
    start = ["--task.backbone.init_from", str(root / "small.pth")]
    run = prepare([*configs(recipe), *TWO_STEPS, *start, "--data.root", str(root)])
    run.fit()
    assert run.trainer.global_step == 2
    check_sparsity(run, recipe)


@pytest.mark.parametrize("recipe", COCO)
def test_coco(recipe: str, root: Path) -> None:
    kind = recipe.split("/")[0]
    start = ["--task.backbone.init_from", str(root / "resnet50.pth"), "--data.workers", "0"]
    words = [*configs(f"{kind}/coco", recipe), *TWO_STEPS, *SMALL, *start, "--name", "x"]
    run = prepare([*words, "--data.root", str(root)])
    assert run.task.optimizer.milestones == [8, 11]
    run.fit()
    assert run.trainer.global_step == 2
    check_sparsity(run, recipe, SPARSE[recipe.split("/")[1].split("_r50")[0]])
    body = run.task.model.backbone.body
    assert not body.conv1.weight.requires_grad
    assert not any(p.requires_grad for p in body.layer1.parameters())


@pytest.mark.parametrize("recipe", BACKBONES)
def test_backbones(recipe: str, root: Path) -> None:
    run = prepare([*configs(recipe), *TWO_STEPS, "--data.root", str(root)])
    run.fit()
    check_sparsity(run, recipe, 11)


def test_a_backbone_goes_from_one_recipe_to_the_next(
    root: Path, tmp_path: Path, monkeypatch
) -> None:
    """As the comments of the recipes say: names of run folders fit together."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NMSPARSITY_DATA", str(root))
    quick = [*TWO_STEPS, "--trainer.fast_dev_run", "false", "--trainer.max_epochs", "1"]
    prepare([*configs("detection/backbone_2of4"), *quick]).fit()
    start = ["--task.backbone.init_from", "runs/backbone_2of4/seed0"]
    start += ["--task.backbone.norm", "batch", "--task.backbone.trainable_layers", "5"]
    run = prepare([*configs("detection/bccd_2of4"), *quick, *start])
    result = run.fit()
    assert result is not None
    check_sparsity(run, "detection/bccd_2of4", 20)
    assert (tmp_path / "runs" / "bccd_2of4" / "seed0" / "result.json").exists()
