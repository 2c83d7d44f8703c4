// Where the output pixels of a layer take their inputs: strides, padding and dilation.
#pragma once

#include "pick.h"
#include "product.h"

namespace {

// Output pixels are numbered through all images.
struct Pixel {
  std::int64_t image, y, x;
};

NMS_INLINE Pixel pixel_of(const nms_product& p, std::int64_t number) {
  const std::int64_t size = p.out_height * p.out_width, inside = number % size;
  return {number / size, inside / p.out_width, inside % p.out_width};
}

// `count` pixels one after the other; divisions are slow.
inline void pixels_from(const nms_product& p, std::int64_t number, std::int64_t count, Pixel* to) {
  Pixel pixel = pixel_of(p, number);
  for (std::int64_t i = 0; i < count; ++i) {
    to[i] = pixel;
    if (++pixel.x < p.out_width) continue;
    pixel.x = 0;
    if (++pixel.y < p.out_height) continue;
    pixel.y = 0;
    ++pixel.image;
  }
}

// Where a pixel's output is, from its first channel on.
NMS_INLINE std::int64_t output_of(const nms_product& p, const Pixel& pixel) {
  return pixel.image * p.y_image + (pixel.y * p.out_width + pixel.x) * p.y_pixel;
}

NMS_INLINE std::int64_t input_y(const nms_product& p, std::int64_t y, int tap) {
  return y * p.stride_y - p.pad_y + tap / p.kernel_width * p.dilate_y;
}

NMS_INLINE std::int64_t input_x(const nms_product& p, std::int64_t x, int tap) {
  return x * p.stride_x - p.pad_x + tap % p.kernel_width * p.dilate_x;
}

// How many windows of inputs there are; the weight has more, of zeros, to fill its last word of
// positions.
NMS_INLINE std::int64_t windows_of(const nms_product& p) {
  return (p.channels + window - 1) / window * p.kernel_height * p.kernel_width;
}

NMS_INLINE bool is_inside(std::int64_t at, std::int64_t size) {
  return static_cast<std::uint64_t>(at) < static_cast<std::uint64_t>(size);
}

NMS_INLINE bool is_pointwise(const nms_product& p) {
  return p.kernel_height * p.kernel_width == 1 && p.stride_y * p.stride_x == 1 && !p.pad_y &&
         !p.pad_x;
}

}  // namespace
