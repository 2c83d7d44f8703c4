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
      if (tap != tap_) {
        planar_ ? find_pieces(static_cast<int>(tap)) : find_pixels(static_cast<int>(tap));
        tap_ = tap;
      }
      const std::int64_t left = p_.channels - channel;
      planar_ ? planar(channel, left, lines) : interleaved(channel, left, lines);
    }
  }

 private:
  // Lanes [first, last) of a vector come from `at` on, as if lane 0 did.
  struct Piece {
    std::int64_t at;
    int first, last;
    Between one, two;  // the same in memory: with stride 2 it lies in two vectors
  };

  // Where a pixel's input is, from its first channel on; -1 in the padding.
  void find_pixels(int tap) {
    for (std::int64_t i = 0; i < count_; ++i) {
      const std::int64_t y = input_y(p_, pixels_[i].y, tap), x = input_x(p_, pixels_[i].x, tap);
      const bool inside = is_inside(y, p_.height) && is_inside(x, p_.width);
      at_[i] = inside ? pixels_[i].image * p_.x_image + (y * p_.width + x) * p_.x_pixel : -1;
    }
  }

  // The pieces of every vector: pixels of one row of the output, as far as they are inside.
  void find_pieces(int tap) {
    const std::int64_t step = p_.stride_x, shift = input_x(p_, 0, tap);
    const std::int64_t low = shift < 0 ? (step - 1 - shift) / step : 0;
    const std::int64_t within = shift < p_.width ? (p_.width - 1 - shift) / step + 1 : 0;
    const std::int64_t high = within < p_.out_width ? within : p_.out_width;
    int pieces = 0;
    for (std::int64_t i = 0; i < pitch_; i += lanes) {
      begins_[i / lanes] = pieces;
      const std::int64_t end = i + lanes < count_ ? i + lanes : count_;
      for (std::int64_t k = i; k < end; k += p_.out_width - pixels_[k].x) {
        const std::int64_t y = input_y(p_, pixels_[k].y, tap), zero = k - pixels_[k].x;
        const std::int64_t first = zero + low > k ? zero + low : k;
        const std::int64_t last = zero + high < end ? zero + high : end;
        if (first >= last || !is_inside(y, p_.height)) continue;
        const std::int64_t at = pixels_[k].image * p_.x_image + y * p_.width + shift;
        pieces_[pieces++] = piece(at + (i - zero) * step, first - i, last - i);
      }
    }
    begins_[pitch_ / lanes] = pieces;
  }

  Piece piece(std::int64_t at, std::int64_t from, std::int64_t to) const {
    const int first = static_cast<int>(from), last = static_cast<int>(to);
    if (p_.stride_x == 1) return {at, first, last, Between(first, last), {}};
    const int end = 2 * last - 1;
    return {at, first, last, Between(2 * first, end), Between(2 * first - lanes, end - lanes)};
  }

  void planar(std::int64_t channel, std::int64_t left, float* lines) const {
    const float* from = x_ + channel * p_.x_channel;
    const int channels = left < window ? static_cast<int>(left) : window;
    for (std::int64_t i = 0; i < pitch_; i += lanes) {
      const int begin = begins_[i / lanes], pieces = begins_[i / lanes + 1] - begin;
      switch (p_.stride_x) {
        case 1: column<1>(from, pieces_ + begin, pieces, channels, lines + i); break;
        case 2: column<2>(from, pieces_ + begin, pieces, channels, lines + i); break;
        default: column<0>(from, pieces_ + begin, pieces, channels, lines + i);
      }
    }
  }

  // A vector of every line; mostly it has one piece or two.
  template <int Step>
  void column(const float* from, const Piece* pieces, int count, int channels, float* to) const {
    for (int c = channels; c < window; ++c) store(to + c * pitch_, Floats{});
    if (count == 1) return column<Step, 1>(from, pieces, channels, to);
    if (count == 2) return column<Step, 2>(from, pieces, channels, to);
    for (int c = 0; c < channels; ++c, from += p_.x_channel, to += pitch_) {
      Words value{};
      for (int k = 0; k < count; ++k) value |= (Words)load_piece<Step>(from, pieces[k]);
      store(to, value);
    }
  }

  template <int Step, int Count>
  void column(const float* from, const Piece* pieces, int channels, float* to) const {
    const Piece first = pieces[0], last = pieces[Count - 1];
    for (int c = 0; c < channels; ++c, from += p_.x_channel, to += pitch_) {
      Words value = (Words)load_piece<Step>(from, first);
      if (Count == 2) value |= (Words)load_piece<Step>(from, last);
      store(to, value);
    }
  }

  template <int Step>
  NMS_INLINE Floats load_piece(const float* from, const Piece& piece) const {
    const float* its = from + piece.at;
    if constexpr (Step == 1) return piece.one.load(its);
    if constexpr (Step == 2) return evens(piece.one.load(its), piece.two.load(its + lanes));
    Floats value{};
    for (int k = piece.first; k < piece.last; ++k) value[k] = its[k * p_.stride_x];
    return value;
  }

  void interleaved(std::int64_t channel, std::int64_t left, float* lines) const {
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
  std::int64_t at_[most_pixels] = {}, tap_ = -1;
  Piece pieces_[most_pixels];
  int begins_[most_vectors + 1];
};

}  // namespace
