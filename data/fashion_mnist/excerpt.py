"""How the excerpt beside this file was taken from the full Fashion-MNIST.

python data/fashion_mnist/excerpt.py FOLDER_OF_THE_FULL_SET
"""

import sys
from pathlib import Path

import torch

from nmsparsity.tasks.idx import read_idx, write_idx

HERE = Path(__file__).parent


def excerpt(full: Path, split: str, per_class: int) -> None:
    """Write the first ``per_class`` images of each of the ten classes, in the order of the file."""
    labels = read_idx(full / f"{split}-labels-idx1-ubyte.gz")
    images = read_idx(full / f"{split}-images-idx3-ubyte.gz")
    first = [(labels == label).nonzero().flatten()[:per_class] for label in range(10)]
    chosen = torch.cat(first).sort().values
    write_idx(images[chosen], HERE / f"{split}-images-idx3-ubyte.gz")
    write_idx(labels[chosen], HERE / f"{split}-labels-idx1-ubyte.gz")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    excerpt(Path(sys.argv[1]), "train", 1000)
    excerpt(Path(sys.argv[1]), "t10k", 200)
