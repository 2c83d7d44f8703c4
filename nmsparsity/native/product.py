"""What a packed weight times activations is to the native library: csrc/product.h."""

from __future__ import annotations

import ctypes

COLUMNS, TOKENS = 0, 1
WINDOW = 16
SLOTS = (1, 2, 4, 6, 8, 12, 16)

_POINTERS = ("values", "places", "x", "bias", "residual", "y")
_SIZES = (
    *("groups", "rows", "channels"),
    *("images", "height", "width", "out_height", "out_width"),
    *("x_image", "x_channel", "x_pixel", "y_image", "y_channel", "y_pixel"),
)
_NUMBERS = (
    *("kernel_height", "kernel_width", "stride_y", "stride_x"),
    *("pad_y", "pad_x", "dilate_y", "dilate_x"),
    *("windows", "slots", "activation", "mode", "vectors", "depth", "turns", "threads"),
)


class Product(ctypes.Structure):
    """`nms_product` of csrc/product.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_int32) for name in _NUMBERS),
    )
