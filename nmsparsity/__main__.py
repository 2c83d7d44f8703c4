"""``python -m nmsparsity``, for launchers such as torchrun."""

import sys

from nmsparsity.cli import main

sys.exit(main())
