"""Every translation recipe is parsed, built and run for two steps, on generated text."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import nmsparsity as nm
from nmsparsity.tasks.train import prepare
from tests.images import lightning_warnings
from tests.sentences import sentences, write_parquet_pairs

pytestmark = [*lightning_warnings, pytest.mark.filterwarnings("ignore:.*smaller than the logging")]
FOLDER = Path(__file__).parents[1] / "recipes" / "translation"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
TWO_STEPS = [
    *("--trainer.fast_dev_run", "2", "--trainer.accelerator", "cpu"),
    *("--trainer.enable_progress_bar", "false", "--sparsity.print_report", "false"),
]
# The generated text has few words, and two small batches are enough to see the model at work.
SMALL = ["--data.vocabulary_size", "300", "--data.batch_tokens", "256"]
LINEARS = {"wmt14": 6 * 6 + 6 * 10, "multi30k": 2 * 6 + 2 * 10}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in LINEARS:
        for seed, split in enumerate(("train", "validation", "test")):
            write_parquet_pairs(folder / name, split, *sentences(40, seed))
    return folder


def settings(recipe: str) -> dict:
    return yaml.safe_load((FOLDER / f"{recipe}.yaml").read_text())


def test_there_are_dense_and_sparse_ones() -> None:
    assert set(RECIPES) == {
        *("multi30k_1of4", "multi30k_1of8", "multi30k_2of4", "multi30k_dense"),
        *("wmt14_2of4", "wmt14_dense"),
    }


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_of_a_set_differ_in_sparsity_alone(recipe: str) -> None:
    dense = settings(f"{recipe.split('_')[0]}_dense")
    other = settings(recipe)
    assert dense.pop("sparsity") == {"method": "dense"}
    pattern = other.pop("sparsity").get("pattern", "dense")
    assert pattern.replace(":", "of") == recipe.split("_")[1]
    assert other == dense


def test_wmt14_is_transformer_base() -> None:
    said = settings("wmt14_2of4")
    assert said["task"]["transformer"] == {
        **{"width": 512, "feed_forward": 2048, "encoder_layers": 6, "decoder_layers": 6},
        **{"heads": 8, "dropout": 0.1},
    }
    assert said["task"]["optimizer"]["warmup_steps"] == 4000
    assert (said["task"]["beam"], said["task"]["length_penalty"]) == (4, 0.6)
    assert (said["task"]["average"], said["trainer"]["max_steps"]) == (5, 100_000)


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_steps(recipe: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NMSPARSITY_DATA", str(root))
    run = prepare(["--config", str(FOLDER / f"{recipe}.yaml"), *TWO_STEPS, *SMALL])
    run.fit()
    assert run.trainer.global_step == 2
    sparse = nm.verify(run.task).sparse
    name, pattern = recipe.split("_")
    if pattern == "dense":
        assert sparse == []
        return
    assert {row.pattern for row in sparse} == {pattern.replace("of", ":")}
    assert len(sparse) == LINEARS[name]
    names = {row.name for row in sparse}
    assert not names & {"model.lm_head.weight", "model.model.shared.weight"}
