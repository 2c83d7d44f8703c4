// Contiguous groups turned into rows of lanes and back, in registers.
#pragma once

#include <utility>

#include "lanes.h"

namespace {

template <class T, int Bytes>
struct Tile {
  using V = Vector<T, Bytes>;
  static constexpr int lanes = Lanes<T, Bytes>::count;
  static constexpr int side = 16 / static_cast<int>(sizeof(T));  // elements in 128 bits
  static constexpr int pieces = Bytes / 16;

  // tile[k][lane] = from[lane * step + k] for k < side.
  static NMS_INLINE void pack(const T* from, std::int64_t step, T* tile) {
    V x[side];
#pragma GCC unroll 8
    for (int i = 0; i < side; ++i) x[i] = gather(from + i * step, side * step);
    transpose(x);
#pragma GCC unroll 8
    for (int i = 0; i < side; ++i) store(tile + i * lanes, x[i]);
  }

  // from tile[k][lane] back to to[lane * step + k].
  static NMS_INLINE void unpack(const T* tile, T* to, std::int64_t step) {
    V x[side];
#pragma GCC unroll 8
    for (int i = 0; i < side; ++i) x[i] = load<V>(tile + i * lanes);
    transpose(x);
#pragma GCC unroll 8
    for (int i = 0; i < side; ++i) scatter(x[i], to + i * step, side * step);
  }

 private:
  // Interleave the low or the high halves of every 128-bit piece of two vectors.
  template <bool High, int... I>
  static NMS_INLINE V interleave(V a, V b, std::integer_sequence<int, I...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, source(I, High)...);
#else
    return __builtin_shuffle(a, b, V{static_cast<T>(source(I, High))...});
#endif
  }

  static constexpr int source(int i, bool high) {
    const int inside = i % side;
    return i - inside + inside / 2 + (high ? side / 2 : 0) + (inside % 2 ? lanes : 0);
  }

  // Every 128-bit piece holds a side x side matrix across `side` vectors: transpose all of them.
  static NMS_INLINE void transpose(V* x) {
    constexpr auto all = std::make_integer_sequence<int, lanes>{};
#pragma GCC unroll 4
    for (int round = 1; round < side; round *= 2) {
      V y[side];
#pragma GCC unroll 8
      for (int i = 0; i < side / 2; ++i) {
        y[2 * i] = interleave<false>(x[i], x[i + side / 2], all);
        y[2 * i + 1] = interleave<true>(x[i], x[i + side / 2], all);
      }
#pragma GCC unroll 8
      for (int i = 0; i < side; ++i) x[i] = y[i];
    }
  }

  // The 128-bit pieces of a vector, `step` elements apart in memory.
  static NMS_INLINE V gather(const T* from, std::int64_t step) {
#if defined(__AVX2__)
    if constexpr (pieces == 2) {
      const auto low = _mm256_castsi128_si256(load<__m128i>(from));
      return (V)_mm256_inserti128_si256(low, load<__m128i>(from + step), 1);
    }
#endif
    V value;
    for (int i = 0; i < pieces; ++i) {
      std::memcpy(reinterpret_cast<char*>(&value) + 16 * i, from + i * step, 16);
    }
    return value;
  }

  static NMS_INLINE void scatter(V value, T* to, std::int64_t step) {
#if defined(__AVX2__)
    if constexpr (pieces == 2) {
      store(to, _mm256_castsi256_si128((__m256i)value));
      return store(to + step, _mm256_extracti128_si256((__m256i)value, 1));
    }
#endif
    for (int i = 0; i < pieces; ++i) {
      std::memcpy(to + i * step, reinterpret_cast<const char*>(&value) + 16 * i, 16);
    }
  }
};

}  // namespace
