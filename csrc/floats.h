// Vectors of fp32, as wide as the instruction set has them.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "lanes.h"

namespace {

constexpr int lanes = NMS_BYTES / 4;
using Floats = Vector<float, NMS_BYTES>;
using Words = Vector<std::uint32_t, NMS_BYTES>;

NMS_INLINE Floats load_floats(const float* from) { return load<Floats>(from); }

template <int... I>
NMS_INLINE Floats all_of(float value, std::integer_sequence<int, I...>) {
  return Floats{(static_cast<void>(I), value)...};  // `Floats{} + value` would add.
}

NMS_INLINE Floats all_of(float value) {
  return all_of(value, std::make_integer_sequence<int, lanes>{});
}

// The first `count` elements, or those from `begin` to `end`; others are neither read nor written,
// and read as zero.
#if defined(__AVX512F__)
NMS_INLINE __mmask16 first(std::int64_t count) {
  return static_cast<__mmask16>(count >= lanes ? 0xffff : count > 0 ? (1u << count) - 1 : 0);
}

NMS_INLINE Floats load_first(const float* from, std::int64_t count) {
  return (Floats)_mm512_maskz_loadu_ps(first(count), from);
}

// Lanes from one to another: of them only, memory is read; the others are zero.
struct Between {
  __mmask16 mask;
  Between() = default;
  Between(int begin, int end) : mask(static_cast<__mmask16>(first(end) & ~first(begin))) {}
  NMS_INLINE Floats load(const float* from) const {
    return (Floats)_mm512_maskz_loadu_ps(mask, from);
  }
};

NMS_INLINE void store_first(float* to, Floats value, std::int64_t count) {
  _mm512_mask_storeu_ps(to, first(count), (__m512)value);
}
#elif defined(__AVX2__)
NMS_INLINE __m256i first(std::int64_t count) {
  const __m256i numbers = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const int clamped = count > lanes ? lanes : count < 0 ? 0 : static_cast<int>(count);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(clamped), numbers);
}

NMS_INLINE Floats load_first(const float* from, std::int64_t count) {
  return count >= lanes ? load_floats(from) : (Floats)_mm256_maskload_ps(from, first(count));
}

struct Between {
  __m256i mask;
  Between() = default;
  Between(int begin, int end) : mask(_mm256_andnot_si256(first(begin), first(end))) {}
  NMS_INLINE Floats load(const float* from) const { return (Floats)_mm256_maskload_ps(from, mask); }
};

NMS_INLINE void store_first(float* to, Floats value, std::int64_t count) {
  // A masked store can be much slower than a whole one.
  count >= lanes ? store(to, value) : _mm256_maskstore_ps(to, first(count), (__m256)value);
}
#else
NMS_INLINE Floats load_first(const float* from, std::int64_t count) {
  if (count >= lanes) return load_floats(from);
  Floats value{};
  for (int i = 0; i < count; ++i) value[i] = from[i];
  return value;
}

struct Between {
  int begin, end;
  Between() = default;
  Between(int from, int to) : begin(from > 0 ? from : 0), end(to < lanes ? to : lanes) {}
  NMS_INLINE Floats load(const float* from) const {
    if (end - begin == lanes) return load_floats(from);
    Floats value{};
    for (int i = begin; i < end; ++i) value[i] = from[i];
    return value;
  }
};

NMS_INLINE void store_first(float* to, Floats value, std::int64_t count) {
  if (count >= lanes) return store(to, value);
  for (int i = 0; i < count; ++i) to[i] = value[i];
}
#endif

template <bool High, int... I>
NMS_INLINE Floats interleave(Floats a, Floats b, std::integer_sequence<int, I...>) {
  constexpr int half = High ? lanes / 2 : 0;
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, (half + I / 2 + (I % 2 ? lanes : 0))...);
#else
  return __builtin_shuffle(a, b, Words{(half + I / 2 + (I % 2 ? lanes : 0))...});
#endif
}

template <int... I>
NMS_INLINE Floats evens(Floats a, Floats b, std::integer_sequence<int, I...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, (2 * I)...);
#else
  return __builtin_shuffle(a, b, Words{2 * I...});
#endif
}

// Every second element of two vectors, from the first on.
NMS_INLINE Floats evens(Floats a, Floats b) {
  return evens(a, b, std::make_integer_sequence<int, lanes>{});
}

// Rows become columns: log2(lanes) rounds of perfect shuffles.
NMS_INLINE void transpose(Floats* x) {
  constexpr auto all = std::make_integer_sequence<int, lanes>{};
#pragma GCC unroll 4
  for (int round = 1; round < lanes; round *= 2) {
    Floats y[lanes];
#pragma GCC unroll 16
    for (int i = 0; i < lanes / 2; ++i) {
      y[2 * i] = interleave<false>(x[i], x[i + lanes / 2], all);
      y[2 * i + 1] = interleave<true>(x[i], x[i + lanes / 2], all);
    }
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) x[i] = y[i];
  }
}

}  // namespace
