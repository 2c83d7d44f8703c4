// Few pixels: lanes are output rows. Windows of a pixel's inputs lie in registers, where every
// lane picks its own; the weights are streamed once.
#pragma once

#include "activate.h"
#include "gather.h"
#include "scratch.h"

namespace {

// 16 inputs in registers; lane by lane another one of them.
#if defined(__AVX512F__)
struct Window {
  Floats x;
  NMS_INLINE explicit Window(const float* from) : x(load_floats(from)) {}
  NMS_INLINE Floats pick(Words places) const {
    return (Floats)_mm512_permutexvar_ps((__m512i)places, (__m512)x);
  }
};
#elif defined(__AVX2__)
struct Window {
  __m256 low, high;
  NMS_INLINE explicit Window(const float* from)
      : low(_mm256_loadu_ps(from)), high(_mm256_loadu_ps(from + 8)) {}
  NMS_INLINE Floats pick(Words places) const {
    const __m256i p = (__m256i)places;
    const __m256 a = _mm256_permutevar8x32_ps(low, p), b = _mm256_permutevar8x32_ps(high, p);
    return (Floats)_mm256_blendv_ps(a, b, _mm256_castsi256_ps(_mm256_slli_epi32(p, 28)));
  }
};
#else
struct Window {
  const float* x;
  NMS_INLINE explicit Window(const float* from) : x(from) {}
  NMS_INLINE Floats pick(Words places) const {
    Floats value;
    for (int i = 0; i < lanes; ++i) value[i] = x[places[i] & 15];
    return value;
  }
};
#endif

// The products of `Pixels` pixels with `Blocks` blocks of rows over windows of one tap. Positions
// come in words of 8: where the windows begin and end with whole words, each is loaded once.
template <int Slots, int Pixels, int Blocks>
struct Windows {
  const float* values;
  const std::uint32_t* places;
  std::int64_t next;  // entries from a block to the next one
  Floats sum[Blocks][Pixels] = {};

  static constexpr int entries = std::lcm(Slots, 8), step = entries / Slots;

  NMS_INLINE void add(std::int64_t first, std::int64_t count, const float* const* x) {
    // The last windows of a layer are padded to whole words, and their weights are zero.
    if (first % step == 0 && count % step == 0) return words(first, count, x);
    for (std::int64_t w = 0; w < count; ++w) {
      const std::uint64_t entry = static_cast<std::uint64_t>((first + w) * Slots);
      // A window of 6 or 12 may lie across three words.
      std::uint64_t e = entry;
#pragma GCC unroll 16
      for (int slot = 0; slot < Slots; ++slot, ++e) {
#pragma GCC unroll 4
        for (int b = 0; b < Blocks; ++b) {
          const std::uint64_t at = static_cast<std::uint64_t>(b * next) + e;
          const Words word = load<Words>(places + at / 8 * lanes);
          one(b, values + at * lanes, word >> static_cast<unsigned>(at % 8 * 4), w, x);
        }
      }
    }
  }

 private:
  NMS_INLINE void words(std::int64_t first, std::int64_t count, const float* const* x) {
    const float* value = values + first * Slots * lanes;
    const std::uint32_t* place = places + first * Slots / 8 * lanes;
    for (std::int64_t w = 0; w < count; w += step) {
      Words word[Blocks];
#pragma GCC unroll 24
      for (int e = 0; e < entries; ++e) {
#pragma GCC unroll 4
        for (int b = 0; b < Blocks; ++b) {
          word[b] = e % 8 ? word[b] >> 4
                          : load<Words>(place + (b * next + e) / 8 * lanes);
          one(b, value + (b * next + e) * lanes, word[b], w + e / Slots, x);
        }
      }
      value += entries * lanes;
      place += entries / 8 * lanes;
    }
  }

  NMS_INLINE void one(int block, const float* value, Words place, std::int64_t w,
                      const float* const* x) {
    const Floats weight = load_floats(value);
#pragma GCC unroll 8
    for (int t = 0; t < Pixels; ++t) {
      sum[block][t] += weight * Window(x[t] + w * window).pick(place);
    }
  }
};

constexpr int most_turns = 16;

class Tokens {
 public:
  Tokens(const nms_product& p, std::int64_t group, std::int64_t begin, std::int64_t count)
      : p_(p), x_(p.x + group * p.channels), group_(group), begin_(begin), count_(count),
        blocks_((p.rows + lanes - 1) / lanes), per_tap_(p.channels / window) {}

  void run(std::int64_t from, std::int64_t to) {
    zeros_ = scratch().floats(p_.channels);
    std::memset(zeros_, 0, static_cast<std::size_t>(p_.channels) * sizeof(float));
    pixels_from(p_, begin_, count_, pixels_);
    // Some blocks of rows meet all the pixels before the next ones do: the weights, of which there
    // is more, are brought to the caches once.
    const std::int64_t turns = (count_ + p_.vectors - 1) / p_.vectors;
    const std::int64_t size = (count_ + turns - 1) / turns;
    for (; from < to; from += blocks_at_a_time) {
      const std::int64_t end = from + blocks_at_a_time < to ? from + blocks_at_a_time : to;
      for (std::int64_t i = 0; i < count_; i += size) {
        some_pixels(i, count_ - i < size ? count_ - i : size, from, end);
      }
    }
  }

 private:
  static constexpr std::int64_t blocks_at_a_time = 4;

  void some_pixels(std::int64_t first, std::int64_t count, std::int64_t from, std::int64_t to) {
    now_ = pixels_ + first;
    switch (p_.slots) {
      case 1: return run_as<1>(count, from, to);
      case 2: return run_as<2>(count, from, to);
      case 4: return run_as<4>(count, from, to);
      case 6: return run_as<6>(count, from, to);
      case 8: return run_as<8>(count, from, to);
      case 12: return run_as<12>(count, from, to);
      default: return run_as<16>(count, from, to);
    }
  }

  template <int Slots>
  void run_as(std::int64_t count, std::int64_t from, std::int64_t to) {
    switch (count) {
      case 1: return all<Slots, 1, 4>(from, to);
      case 2: return all<Slots, 2, 2>(from, to);
      case 3: return all<Slots, 3, 2>(from, to);
      case 4: return all<Slots, 4, 2>(from, to);
      case 5: return all<Slots, 5, 1>(from, to);
      case 6: return all<Slots, 6, 1>(from, to);
      case 7: return all<Slots, 7, 1>(from, to);
      default: return all<Slots, 8, 1>(from, to);
    }
  }

  template <int Slots, int Pixels, int Blocks>
  void all(std::int64_t from, std::int64_t to) {
    for (; from + Blocks <= to; from += Blocks) some<Slots, Pixels, Blocks>(from);
    for (; from < to; ++from) some<Slots, Pixels, 1>(from);
  }

  template <int Slots, int Pixels, int Blocks>
  void some(std::int64_t block) {
    const std::int64_t size = std::int64_t{p_.windows} * p_.slots;
    const std::int64_t entry = (group_ * blocks_ + block) * size;
    Windows<Slots, Pixels, Blocks> windows{p_.values + entry * lanes,
                                           p_.places + entry / 8 * lanes, size};
    for (int tap = 0; tap < p_.kernel_height * p_.kernel_width; ++tap) {
      const float* x[Pixels];
      for (int t = 0; t < Pixels; ++t) x[t] = input(now_[t], tap);
      windows.add(tap * per_tap_, per_tap_, x);
    }
    for (int b = 0; b < Blocks; ++b) {
      for (int t = 0; t < Pixels; ++t) put(windows.sum[b][t], now_[t], block + b);
    }
  }

  const float* input(const Pixel& pixel, int tap) const {
    const std::int64_t y = input_y(p_, pixel.y, tap), x = input_x(p_, pixel.x, tap);
    if (!is_inside(y, p_.height) || !is_inside(x, p_.width)) return zeros_;
    return x_ + pixel.image * p_.x_image + (y * p_.width + x) * p_.x_pixel;
  }

  NMS_INLINE void put(Floats value, const Pixel& pixel, std::int64_t block) const {
    const std::int64_t first = block * lanes, row = group_ * p_.rows + first;
    const std::int64_t count = p_.rows - first;
    const std::int64_t at = output_of(p_, pixel) + row;
    if (p_.bias) value += load_first(p_.bias + row, count);
    if (p_.residual) value += load_first(p_.residual + at, count);
    if (p_.activation) value = activate(value, p_.activation);
    store_first(p_.y + at, value, count);
  }

  const nms_product& p_;
  const float* const x_;
  const std::int64_t group_, begin_, count_, blocks_, per_tap_;
  float* zeros_ = nullptr;
  const Pixel* now_ = nullptr;
  Pixel pixels_[8 * most_turns];
};

}  // namespace
