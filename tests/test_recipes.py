"""Every recipe is parsed, built and run for two steps, on generated images."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import nmsparsity as nm
from nmsparsity.tasks.arguments import train_parser
from nmsparsity.tasks.train import prepare
from tests.images import lightning_warnings, pictures, write_folders, write_idx_set, write_parquet

pytestmark = [*lightning_warnings, pytest.mark.filterwarnings("ignore:.*smaller than the logging")]
FOLDER = Path(__file__).parents[1] / "recipes" / "classification"
OVER_IMAGENET = sorted(path.stem for path in FOLDER.glob("resnet*.yaml"))
ALONE = sorted(
    path.stem for path in FOLDER.glob("*.yaml") if path.stem.startswith(("cifar", "fashion"))
)
TWO_STEPS = [
    *("--trainer.fast_dev_run", "2", "--trainer.accelerator", "cpu"),
    *("--trainer.enable_progress_bar", "false", "--sparsity.print_report", "false"),
]
SMALL = [
    *("--data.image_size", "64", "--data.resize", "72"),
    *("--data.batch_size", "4", "--data.workers", "0"),
]
# Convolutions, less the first one; the classifier is always dense.
CONVOLUTIONS = {"resnet18": 20, "resnet50": 53}


def configs(*names: str) -> list[str]:
    return [word for name in names for word in ("--config", str(FOLDER / f"{name}.yaml"))]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a few images of every set the recipes ask for."""
    folder = tmp_path_factory.mktemp("data")
    write_folders(folder / "imagenet")
    write_idx_set(folder / "fashion_mnist", train=300, size=28)
    for split, count in (("train", 300), ("test", 30)):
        write_parquet(folder / "cifar10", split, *pictures(count, 32, 3))
    return folder


def pattern_of(recipe: str) -> str | None:
    settings = yaml.safe_load((FOLDER / f"{recipe}.yaml").read_text())["sparsity"]
    return None if settings["method"] == "dense" else settings["pattern"]


def test_all_recipes_are_tested() -> None:
    known = {*OVER_IMAGENET, *ALONE, "imagenet", "kernel_axis"}
    assert known == {path.stem for path in FOLDER.glob("*.yaml")}
    wanted = ["resnet18_2of4", "resnet50_1of16", "resnet50_1of4", "resnet50_2of4", "resnet50_2of8"]
    assert [*wanted, "resnet50_4of8", "resnet50_dense"] == OVER_IMAGENET


def test_imagenet_has_the_settings_of_the_paper() -> None:
    parser = train_parser()
    config = parser.parse_args(configs("imagenet", "resnet50_2of4"))
    assert vars(config.task.optimizer) == {
        "lr": 0.1,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 5e-5,
        "decay_norm_and_bias": True,
        "warmup_epochs": 5,
    }
    assert (config.trainer.max_epochs, config.data.batch_size) == (120, 256)
    assert (config.data.image_size, config.data.resize, config.data.lighting) == (224, 256, 0.1)
    assert config.task.label_smoothing == 0.0
    assert config.sparsity.method_options == {"decay": 2e-4}


@pytest.mark.parametrize(
    ("recipe", "axis"),
    [
        *((recipe, "input") for recipe in OVER_IMAGENET),
        *((recipe, "kernel") for recipe in OVER_IMAGENET if "dense" not in recipe),
    ],
)
def test_imagenet(recipe: str, axis: str, root: Path) -> None:
    pattern = pattern_of(recipe)
    overlay = configs("kernel_axis") if axis == "kernel" else []
    words = [*configs("imagenet", recipe), *overlay, *TWO_STEPS, *SMALL]
    run = prepare([*words, "--data.root", str(root)])
    assert run.trainer.max_epochs == 1
    assert run.data.lighting == 0.1
    run.fit()
    assert run.trainer.global_step == 2
    group = run.trainer.optimizers[0].param_groups
    assert {(g["momentum"], g["nesterov"], g["weight_decay"]) for g in group} == {
        (0.9, False, 5e-5)
    }
    sparse = nm.verify(run.task).sparse
    if pattern is None:
        assert sparse == []
        return
    assert {(row.pattern, row.axis) for row in sparse} == {(pattern, axis)}
    all_of_them = CONVOLUTIONS[recipe.split("_")[0]]
    assert len(sparse) == (all_of_them if axis == "kernel" else all_of_them - 1)
    assert ("model.conv1.weight" in {row.name for row in sparse}) == (axis == "kernel")
    assert "model.fc.weight" not in {row.name for row in sparse}


@pytest.mark.parametrize("recipe", ALONE)
def test_small_images(recipe: str, root: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NMSPARSITY_DATA", str(root))
    if "fixed" in recipe:
        dense = [*configs("cifar10_dense"), *TWO_STEPS, "--trainer.fast_dev_run", "false"]
        dense += ["--trainer.max_epochs", "1"]
        prepare(dense).fit()
        assert Path("runs/cifar10_dense/seed0/last.ckpt").exists()
    run = prepare([*configs(recipe), *TWO_STEPS])
    run.fit()
    assert run.trainer.global_step == 2
    pattern = pattern_of(recipe)
    sparse = nm.verify(run.task).sparse
    assert len(sparse) == (0 if pattern is None else 8)
    assert {(row.pattern, row.axis) for row in sparse} <= {(pattern, "input")}
