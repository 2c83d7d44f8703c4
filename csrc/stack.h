// The inputs of a few output pixels, brought together: window by window, pixel by pixel, 16 inputs.
#pragma once

#include "pick.h"
#include "pixels.h"

namespace {

class Stack {
 public:
  Stack(const nms_product& p, std::int64_t group)
      : p_(p), x_(p.x + group * p.channels * p.x_channel),
        per_tap_((p.channels + window - 1) / window) {}

  // All windows of `count` pixels, as if there were `width` of them: the others are zero.
  void fill(const Pixel* pixels, int count, int width, float* to) const {
    const std::int64_t taps = std::int64_t{p_.kernel_height} * p_.kernel_width;
    for (int tap = 0; tap < taps; ++tap, to += per_tap_ * width * window) {
      const float* from[most] = {};
      for (int i = 0; i < count; ++i) from[i] = input(pixels[i], tap);
      p_.x_channel == 1 ? interleaved(from, width, to) : planar(from, width, to);
    }
  }

  static constexpr int most = 8;  // pixels

 private:
  // A pixel's input, from its first channel on; null in the padding.
  const float* input(const Pixel& pixel, int tap) const {
    const std::int64_t y = input_y(p_, pixel.y, tap), x = input_x(p_, pixel.x, tap);
    if (!is_inside(y, p_.height) || !is_inside(x, p_.width)) return nullptr;
    return x_ + pixel.image * p_.x_image + (y * p_.width + x) * p_.x_pixel;
  }

  void interleaved(const float* const* from, int width, float* to) const {
    for (int i = 0; i < width; ++i, to += window) {
      float* its = to;
      for (std::int64_t c = 0; c < p_.channels; c += window, its += width * window) {
        for (int part = 0; part < window; part += lanes) {
          const std::int64_t left = p_.channels - c - part;
          store(its + part, from[i] ? load_first(from[i] + c + part, left) : Floats{});
        }
      }
    }
  }

  void planar(const float* const* from, int width, float* to) const {
    bool together = from[0] != nullptr;
    for (int i = 1; i < width; ++i) together &= from[i] == from[0] + i;
    for (std::int64_t c = 0; c < p_.channels; c += window, to += width * window) {
      const std::int64_t left = p_.channels - c < window ? p_.channels - c : window;
      together ? transposed(from[0] + c * p_.x_channel, left, width, to)
               : one_by_one(from, c, left, width, to);
    }
  }

  // Pixels side by side in memory: vectors of them, channel by channel, turned.
  void transposed(const float* from, std::int64_t left, int width, float* to) const {
    for (int i = 0; i < width; i += lanes) {
      for (int part = 0; part < window; part += lanes) {
        Floats x[lanes];
        for (int k = 0; k < lanes; ++k) {
          const float* its = from + (part + k) * p_.x_channel + i;
          x[k] = part + k < left ? load_first(its, width - i) : Floats{};
        }
        transpose(x);
        for (int k = 0; k < lanes && i + k < width; ++k) store(to + (i + k) * window + part, x[k]);
      }
    }
  }

  void one_by_one(const float* const* from, std::int64_t channel, std::int64_t left, int width,
                  float* to) const {
    for (int i = 0; i < width; ++i, to += window) {
      for (int c = 0; c < window; ++c) {
        to[c] = from[i] && c < left ? from[i][(channel + c) * p_.x_channel] : 0.0f;
      }
    }
  }

  const nms_product& p_;
  const float* const x_;
  const std::int64_t per_tap_;
};

}  // namespace
