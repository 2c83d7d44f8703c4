"""The pixels of image files of all kinds, as 8-bit RGB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional


def read_image(path: str | Path) -> Tensor:
    """An image file as uint8 ``[3, height, width]``; grey and palettes become RGB.

    Of 16 bits the upper 8 are kept; transparency is left out.

    Raises:
        ValueError: for pixels whose range is not known (32 bits, floats).
        OSError: naming the file that is damaged, or no image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if why := unknown_range(image):
                raise ValueError(f"{path} {why}")
            # PIL cuts 16 bits off at 255.
            deep = image.mode.startswith("I")
            whole = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if deep else image
            pixels: Tensor = tv_tensors.Image(functional.pil_to_tensor(whole.convert("RGB")))
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError) as error:  # Pillow's word for a damaged PNG.
        raise OSError(f"{path}: not to be read as an image ({error})") from error
    return pixels


def unknown_range(image: Any) -> str | None:
    """Why an opened image cannot be brought to 8 bits; None where it can."""
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        return f"has pixels of mode {image.mode!r}, whose range is not known: want 8 or 16 bits"
    return None
