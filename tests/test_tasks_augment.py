"""Whole-batch augmentation against one image at a time."""

import pytest
import torch

from nmsparsity.tasks.augment import crop_flip, normalize


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("flip", [True, False])
def test_every_image_is_a_window_of_its_padded_self(flip: bool) -> None:
    images = torch.randint(1, 255, (40, 5, 6, 3), generator=seeded(0), dtype=torch.uint8)
    out = crop_flip(images, 2, flip, seeded(1))
    seen = set()
    for image, got in zip(images, out, strict=True):
        padded = torch.zeros(9, 10, 3, dtype=torch.uint8)
        padded[2:7, 2:8] = image
        windows = {
            (row, column, mirror): window.flip(1) if mirror else window
            for row in range(5)
            for column in range(5)
            for mirror in (False, True)
            for window in [padded[row : row + 5, column : column + 6]]
        }
        found = [place for place, window in windows.items() if torch.equal(window, got)]
        assert len(found) == 1
        seen.add(found[0])
    assert {place[2] for place in seen} == ({False, True} if flip else {False})
    assert {place[0] for place in seen} == {place[1] for place in seen} == set(range(5))


def test_the_generator_alone_decides() -> None:
    images = torch.randint(0, 255, (8, 5, 5, 1), generator=seeded(0), dtype=torch.uint8)
    assert torch.equal(crop_flip(images, 2, True, seeded(3)), crop_flip(images, 2, True, seeded(3)))
    assert not torch.equal(
        crop_flip(images, 2, True, seeded(3)), crop_flip(images, 2, True, seeded(4))
    )


def test_normalize_by_hand() -> None:
    images = torch.tensor([[[[0, 51], [102, 255]]]], dtype=torch.uint8)
    out = normalize(images, [0.0, 0.2], [1.0, 0.5])
    assert out.shape == (1, 2, 1, 2)
    torch.testing.assert_close(out, torch.tensor([[[[0.0, 0.4]], [[0.0, 1.6]]]]))
    assert normalize(images.repeat(4, 4, 4, 2), [0.0] * 4, [1.0] * 4).is_contiguous(
        memory_format=torch.channels_last
    )
