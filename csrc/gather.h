// The inputs of a tile of output pixels, brought together: one line of pixels for every input.
#pragma once

#include "pick.h"
#include "pixels.h"

namespace {

constexpr int most_vectors = 8;
constexpr int most_pixels = most_vectors * lanes;

class Gather {
 public:
  // For `count` pixels from `begin` on, in lines of `pitch` elements.
  Gather(const nms_product& p, std::int64_t group, std::int64_t begin, std::int64_t count,
         std::int64_t pitch)
      : p_(p), x_(p.x + group * p.channels * p.x_channel), count_(count), pitch_(pitch),
        per_tap_((p.channels + window - 1) / window), planar_(p.x_pixel == 1) {
    pixels_from(p, begin, count, pixels_);
  }

  const Pixel& pixel(std::int64_t i) const { return pixels_[i]; }

  // Windows [from, to) of the inputs: 16 lines each.
  void windows(std::int64_t from, std::int64_t to, float* lines) {
    for (std::int64_t w = from; w < to; ++w, lines += window * pitch_) {
      const std::int64_t tap = w / per_tap_, channel = w % per_tap_ * window;
      if (tap >= std::int64_t{p_.kernel_height} * p_.kernel_width) {
        std::memset(lines, 0, static_cast<std::size_t>(window * pitch_) * sizeof(float));
        continue;
      }
      if (tap != tap_) find(static_cast<int>(tap));
      const std::int64_t left = p_.channels - channel;
      planar_ ? planar(channel, left, lines) : interleaved(channel, left, lines);
    }
  }

 private:
  // Where a pixel's input is, from its first channel on; -1 in the padding.
  void find(int tap) {
    tap_ = tap;
    runs_ = 0;
    for (std::int64_t i = 0; i < count_; ++i) {
      const std::int64_t y = input_y(p_, pixels_[i].y, tap), x = input_x(p_, pixels_[i].x, tap);
      const bool inside = is_inside(y, p_.height) && is_inside(x, p_.width);
      at_[i] = inside ? pixels_[i].image * p_.x_image + (y * p_.width + x) * p_.x_pixel : -1;
      const bool goes_on = i && inside && at_[i - 1] >= 0 && at_[i] == at_[i - 1] + 1;
      if (goes_on) {
        ++length_[runs_ - 1];
      } else if (inside) {
        start_[runs_] = i;
        length_[runs_++] = 1;
      }
    }
    full_ = runs_ == 1 && length_[0] == count_;
    scattered_ = runs_ * 4 > count_;
  }

  void planar(std::int64_t channel, std::int64_t left, float* lines) {
    for (int c = 0; c < window; ++c, lines += pitch_) {
      if (c >= left || !full_) zero(lines);
      if (c >= left) continue;
      const float* from = x_ + (channel + c) * p_.x_channel;
      if (scattered_) {
        for (std::int64_t i = 0; i < count_; ++i) {
          if (at_[i] >= 0) lines[i] = from[at_[i]];
        }
        continue;
      }
      for (std::int64_t run = 0; run < runs_; ++run) {
        copy(from + at_[start_[run]], lines + start_[run], length_[run]);
      }
      if (full_) pad(lines);
    }
  }

  void zero(float* line) const {
    for (std::int64_t i = 0; i < pitch_; i += lanes) store(line + i, Floats{});
  }

  void pad(float* line) const {
    for (std::int64_t i = count_; i < pitch_; ++i) line[i] = 0.0f;
  }

  static void copy(const float* from, float* to, std::int64_t count) {
    std::int64_t i = 0;
    for (; i + lanes <= count; i += lanes) store(to + i, load_floats(from + i));
    if (i < count) store_first(to + i, load_first(from + i, count - i), count - i);
  }

  void interleaved(std::int64_t channel, std::int64_t left, float* lines) {
    for (std::int64_t i = 0; i < pitch_; i += lanes) {
      for (int part = 0; part < window; part += lanes) {
        Floats x[lanes];
        for (int k = 0; k < lanes; ++k) {
          const bool inside = i + k < count_ && at_[i + k] >= 0;
          const float* from = x_ + at_[i + k] + channel + part;
          x[k] = inside ? load_first(from, left - part) : Floats{};
        }
        transpose(x);
        for (int k = 0; k < lanes; ++k) store(lines + (part + k) * pitch_ + i, x[k]);
      }
    }
  }

  const nms_product& p_;
  const float* const x_;
  const std::int64_t count_, pitch_, per_tap_;
  const bool planar_;
  Pixel pixels_[most_pixels];
  std::int64_t at_[most_pixels] = {}, start_[most_pixels], length_[most_pixels];
  std::int64_t tap_ = -1, runs_ = 0;
  bool full_ = false, scattered_ = false;
};

}  // namespace
