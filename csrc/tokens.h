// Lanes are output rows: windows of a pixel's inputs lie in registers, where every lane picks its
// own; the sums of some pixels and blocks of rows stay in registers, too.
#pragma once

#include <numeric>

#include "activate.h"
#include "scratch.h"
#include "stack.h"

namespace {

// sums[block][pixel] += values * inputs over some windows; `goes_on` where sums are there already.
// Windows begin with whole words of 8 positions.
template <int Slots, int Pixels, int Blocks>
void add_windows(const float* values, const std::uint32_t* places, std::int64_t next,
                 std::int64_t windows, const float* x, bool goes_on, float* sums) {
  constexpr int entries = std::lcm(Slots, 8), step = entries / Slots;
  Floats sum[Blocks][Pixels] = {};
  for (int i = 0; goes_on && i < Blocks * Pixels; ++i) {
    sum[i / Pixels][i % Pixels] = load_floats(sums + i * lanes);
  }
  for (std::int64_t w = 0; w < windows; w += step) {
    Words word[Blocks];
    Window inputs[Pixels];
#pragma GCC unroll 24
    for (int e = 0; e < entries; ++e) {
      if (e % Slots == 0) {
        if (e && w + e / Slots >= windows) break;
#pragma GCC unroll 8
        for (int i = 0; i < Pixels; ++i) {
          inputs[i] = Window(x + (e / Slots * Pixels + i) * window);
          if (Slots >= 4) inputs[i].hold();
        }
      }
#pragma GCC unroll 4
      for (int b = 0; b < Blocks; ++b) {
        const std::int64_t at = b * next + e;
        word[b] = e % 8 ? word[b] >> 4 : load<Words>(places + at / 8 * lanes);
        const Floats weight = load_floats(values + at * lanes);
#pragma GCC unroll 8
        for (int i = 0; i < Pixels; ++i) sum[b][i] += weight * inputs[i].pick(word[b]);
      }
    }
    values += entries * lanes;
    places += entries / 8 * lanes;
    x += step * Pixels * window;
  }
#pragma GCC unroll 16
  for (int i = 0; i < Blocks * Pixels; ++i) store(sums + i * lanes, sum[i / Pixels][i % Pixels]);
}

class Tokens {
 public:
  static constexpr int most_turns = 16;

  Tokens(const nms_product& p, std::int64_t group, std::int64_t begin, std::int64_t count)
      : p_(p), group_(group), stack_(p, group), blocks_((p.rows + lanes - 1) / lanes),
        turns_((count + p.vectors - 1) / p.vectors), size_((count + turns_ - 1) / turns_),
        width_(size_ < 5 ? static_cast<int>(size_) : size_ < 7 ? 6 : 8), count_(count) {
    pixels_from(p, begin, count, pixels_);
    for (std::int64_t i = 0; i < count; ++i) outputs_[i] = output_of(p, pixels_[i]);
  }

  // The blocks [from, to) of rows. Some of them meet all the pixels before the next ones do: the
  // weights, of which there is more, come to the caches once; of both only so many windows at a
  // time that they stay in the first one.
  void run(std::int64_t from, std::int64_t to) {
    const std::int64_t windows = windows_of(p_), turn = windows * width_ * window;
    const std::int64_t some = p_.slots < 4 ? 8 / p_.slots : 4, sum = some * width_ * lanes;
    float* tile = scratch().floats(turns_ * (turn + sum));
    float* sums = tile + turns_ * turn;
    for (std::int64_t i = 0; i < turns_; ++i) {
      stack_.fill(pixels_ + i * size_, pixels_in(i), width_, tile + i * turn);
    }
    for (; from < to; from += some) {
      const std::int64_t end = from + some < to ? from + some : to;
      for (std::int64_t w = 0; w < windows; w += p_.depth) {
        const std::int64_t until = w + p_.depth < windows ? w + p_.depth : windows;
        for (std::int64_t i = 0; i < turns_; ++i) {
          if (until == windows) announce(from, end, i);
          add(from, end, w, until, tile + i * turn + w * width_ * window, sums + i * sum);
          if (until == windows) finish(from, end, i, sums + i * sum);
        }
      }
    }
  }

 private:
  int pixels_in(std::int64_t turn) const {
    const std::int64_t left = count_ - turn * size_;
    return static_cast<int>(left < size_ ? left : size_);
  }

  void add(std::int64_t from, std::int64_t to, std::int64_t w, std::int64_t end, const float* x,
           float* sums) const {
    switch (p_.slots) {
      case 1: return add_as<1>(from, to, w, end, x, sums);
      case 2: return add_as<2>(from, to, w, end, x, sums);
      case 4: return add_as<4>(from, to, w, end, x, sums);
      case 6: return add_as<6>(from, to, w, end, x, sums);
      case 8: return add_as<8>(from, to, w, end, x, sums);
      case 12: return add_as<12>(from, to, w, end, x, sums);
      default: return add_as<16>(from, to, w, end, x, sums);
    }
  }

  template <int Slots>
  void add_as(std::int64_t from, std::int64_t to, std::int64_t w, std::int64_t end, const float* x,
              float* sums) const {
    // As many blocks as there are registers for.
    constexpr bool many = lanes == 16;
    switch (width_) {
      case 1: return all<Slots, 1, 4>(from, to, w, end, x, sums);
      case 2: return all<Slots, 2, many ? 4 : 2>(from, to, w, end, x, sums);
      case 3: return all<Slots, 3, many ? 4 : 2>(from, to, w, end, x, sums);
      case 4: return all<Slots, 4, many ? 4 : 2>(from, to, w, end, x, sums);
      case 6: return all<Slots, 6, many ? 2 : 1>(from, to, w, end, x, sums);
      default: return all<Slots, 8, many ? 2 : 1>(from, to, w, end, x, sums);
    }
  }

  template <int Slots, int Pixels, int Blocks>
  void all(std::int64_t from, std::int64_t to, std::int64_t w, std::int64_t end, const float* x,
           float* sums) const {
    const std::int64_t next = std::int64_t{p_.windows} * Slots;
    for (std::int64_t done; from < to; from += done, sums += done * Pixels * lanes) {
      const std::int64_t entry = (group_ * blocks_ + from) * next + w * Slots;
      const float* values = p_.values + entry * lanes;
      const std::uint32_t* places = p_.places + entry / 8 * lanes;
      done = from + Blocks <= to ? Blocks : 1;
      if (done == Blocks) {
        add_windows<Slots, Pixels, Blocks>(values, places, next, end - w, x, w, sums);
      } else {
        add_windows<Slots, Pixels, 1>(values, places, next, end - w, x, w, sums);
      }
    }
  }

  // What `finish` will touch, far apart in memory, is on its way while there is work to do.
  void announce(std::int64_t from, std::int64_t to, std::int64_t turn) const {
    if (p_.y_channel != 1) return;
    for (int i = 0; i < pixels_in(turn); ++i) {
      const std::int64_t at = outputs_[turn * size_ + i] + group_ * p_.rows;
      for (std::int64_t b = from; b < to; ++b) {
        __builtin_prefetch(p_.y + at + b * lanes, 1);
        if (p_.residual) __builtin_prefetch(p_.residual + at + b * lanes);
      }
    }
  }

  // Bias, residual and activation, and where the sums belong.
  void finish(std::int64_t from, std::int64_t to, std::int64_t turn, const float* sums) const {
    if (p_.y_channel == 1) return interleaved(from, to, turn, sums);
    for (; from < to; ++from, sums += width_ * lanes) planar(from, turn, sums);
  }

  // Pixel by pixel, so that what lies together is written together.
  void interleaved(std::int64_t from, std::int64_t to, std::int64_t turn, const float* sums) const {
    const std::int64_t row = group_ * p_.rows + from * lanes, rows = p_.rows - from * lanes;
    for (int i = 0; i < pixels_in(turn); ++i, sums += lanes) {
      const std::int64_t at = outputs_[turn * size_ + i] + row;
      for (std::int64_t b = 0; b < to - from; ++b) {
        const Floats value = load_floats(sums + b * width_ * lanes);
        const std::int64_t left = rows - b * lanes;
        const Floats bias = p_.bias ? load_first(p_.bias + row + b * lanes, left) : Floats{};
        put(value + bias, at + b * lanes, left);
      }
    }
  }

  void planar(std::int64_t block, std::int64_t turn, const float* sums) const {
    const int count = pixels_in(turn);
    const std::int64_t* at = outputs_ + turn * size_;
    for (int i = 0; i < count; i += lanes) {
      Floats x[lanes];
      for (int k = 0; k < lanes; ++k) {
        x[k] = i + k < count ? load_floats(sums + (i + k) * lanes) : Floats{};
      }
      transpose(x);
      const int left = count - i < lanes ? count - i : lanes;
      const bool together = at[i + left - 1] == at[i] + left - 1;
      for (int r = 0; r < lanes && block * lanes + r < p_.rows; ++r) {
        const std::int64_t row = group_ * p_.rows + block * lanes + r;
        const Floats value = x[r] + all_of(p_.bias ? p_.bias[row] : 0.0f);
        if (together) {
          put(value, at[i] + row * p_.y_channel, left);
          continue;
        }
        for (int k = 0; k < left; ++k) put(all_of(value[k]), at[i + k] + row * p_.y_channel, 1);
      }
    }
  }

  NMS_INLINE void put(Floats value, std::int64_t at, std::int64_t count) const {
    if (p_.residual) value += load_first(p_.residual + at, count);
    if (p_.activation) value = activate(value, p_.activation);
    store_first(p_.y + at, value, count);
  }

  const nms_product& p_;
  const std::int64_t group_;
  const Stack stack_;
  const std::int64_t blocks_, turns_, size_;
  const int width_;
  const std::int64_t count_;
  Pixel pixels_[Stack::most * most_turns];
  std::int64_t outputs_[Stack::most * most_turns];
};

}  // namespace
