"""Order of images: repeatable, resumable, and shared between processes without a repeat."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nmsparsity.tasks import batches
from nmsparsity.tasks.image_set import ImageSet
from nmsparsity.tasks.memory_loader import MemoryLoader
from nmsparsity.tasks.worker_loader import WorkerLoader
from tests.images import pictures


def memory(count: int = 40, size: int = 6, **options) -> MemoryLoader:
    images, labels = pictures(count, 8, 3)
    data = ImageSet(images, labels, ("a", "b", "c"))
    return MemoryLoader(data, size, [0.5] * 3, [0.2] * 3, **{"train": True, **options})


def workers(count: int = 40, size: int = 6, processes: int = 0, **options) -> WorkerLoader:
    from PIL import Image
    from torchvision.transforms import v2

    images, labels = pictures(count, 8, 3)
    pairs = [(Image.fromarray(i.numpy()), int(y)) for i, y in zip(images, labels, strict=True)]
    steps = [v2.RandomResizedCrop(8, antialias=True), v2.ToImage()]
    transform = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True)])
    options = {"train": True, **options}
    return WorkerLoader(pairs, transform, size, workers=processes, **options)


LOADERS = pytest.mark.parametrize("make", [memory, workers])


@LOADERS
def test_an_epoch_repeats_and_the_next_differs(make) -> None:
    loader = make()
    first = [images for images, _ in loader]
    again = [images for images, _ in make()]
    assert len(first) == len(loader) == 6
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    loader.set_epoch(1)
    assert not torch.equal(first[0], next(iter(loader))[0])
    assert not torch.equal(first[0], next(iter(make(seed=1)))[0])


@LOADERS
def test_an_interrupted_epoch_goes_on_as_if_it_had_not_been(make) -> None:
    whole = list(make())
    loader = make()
    stream = iter(loader)
    for _ in range(2):
        next(stream)
    resumed = make()
    resumed.load_state_dict(loader.state_dict())
    rest = list(resumed)
    assert len(rest) == len(whole) - 2
    for (images, labels), (want, truth) in zip(rest, whole[2:], strict=True):
        assert torch.equal(images, want)
        assert torch.equal(labels, truth)
    assert len(list(resumed)) == len(whole), "the epoch after it is a whole one"


@LOADERS
def test_a_checkpoint_at_the_end_of_an_epoch_begins_the_next(make) -> None:
    loader = make()
    for _ in loader:
        state = loader.state_dict()
    resumed = make()
    resumed.load_state_dict(state)
    assert len(list(resumed)) == len(loader)


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    want = torch.rand(3)
    for make in (memory, workers):
        torch.manual_seed(0)
        list(make())
        assert torch.equal(torch.rand(3), want)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on one core
def test_augmentation_does_not_depend_on_the_number_of_workers() -> None:
    alone = list(workers(count=12))
    helped = list(workers(count=12, processes=2))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(alone, helped, strict=True))


@given(
    count=st.integers(5, 60),
    size=st.integers(1, 9),
    world=st.integers(1, 5),
)
def test_evaluation_sees_every_image_once_over_all_processes(count, size, world) -> None:
    with pytest.MonkeyPatch.context() as patch:
        seen: list[int] = []
        for rank in range(world):
            patch.setattr(batches, "rank_and_world", lambda rank=rank: (rank, world))
            loader = memory(count, size, train=False)
            plan = loader.plan()
            assert len(plan) == len(loader)
            seen += torch.cat(plan).tolist()
        assert sorted(seen) == list(range(count))


@given(count=st.integers(20, 60), world=st.integers(1, 5))
def test_training_gives_all_processes_as_many_full_batches(count, world) -> None:
    with pytest.MonkeyPatch.context() as patch:
        plans = []
        for rank in range(world):
            patch.setattr(batches, "rank_and_world", lambda rank=rank: (rank, world))
            plans.append(memory(count, 4).plan())
    assert {len(plan) for plan in plans} == {count // (4 * world)}
    assert all(len(batch) == 4 for plan in plans for batch in plan)
    shown = torch.cat([batch for plan in plans for batch in plan])
    assert len(shown.unique()) == len(shown)


def test_more_than_there_is() -> None:
    with pytest.raises(ValueError, match="batch_size 41 on each of 1 processes: more than the 40"):
        memory(size=41)


@LOADERS
@pytest.mark.parametrize("rank", [0, 1])
def test_fewer_images_than_processes_is_an_error_on_all_of_them(
    make, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else those that have an image would wait for those that have none, and ended."""
    monkeypatch.setattr(batches, "rank_and_world", lambda: (rank, 2))
    assert len(make(count=3, train=False)) == 1
    with pytest.raises(ValueError, match="1 images to evaluate on 2 processes"):
        make(count=1, train=False)
