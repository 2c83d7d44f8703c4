// 16 inputs of a pixel, of which every lane picks its own.
#pragma once

#include "floats.h"

namespace {

constexpr int window = 16;

#if defined(__AVX512F__)
struct Window {
  Floats x;
  Window() = default;
  NMS_INLINE explicit Window(const float* from) : x(load_floats(from)) {}
  // Stay in a register: the compiler would rather load it anew for every use.
  NMS_INLINE void hold() { asm("" : "+v"(x)); }
#if defined(__clang__)
  NMS_INLINE Floats pick(Words places) const {
    return (Floats)_mm512_permutexvar_ps((__m512i)places, (__m512)x);
  }
#else
  NMS_INLINE Floats pick(Words places) const { return __builtin_shuffle(x, places); }
#endif
};
#elif defined(__AVX2__)
struct Window {
  __m256 low, high;
  Window() = default;
  NMS_INLINE explicit Window(const float* from)
      : low(_mm256_loadu_ps(from)), high(_mm256_loadu_ps(from + 8)) {}
  NMS_INLINE void hold() {}  // There are too few registers.
  NMS_INLINE Floats pick(Words places) const {
    const __m256i p = (__m256i)places;
    const __m256 a = _mm256_permutevar8x32_ps(low, p), b = _mm256_permutevar8x32_ps(high, p);
    return (Floats)_mm256_blendv_ps(a, b, _mm256_castsi256_ps(_mm256_slli_epi32(p, 28)));
  }
};
#else
struct Window {
  const float* x = nullptr;
  Window() = default;
  NMS_INLINE explicit Window(const float* from) : x(from) {}
  NMS_INLINE void hold() {}
  NMS_INLINE Floats pick(Words places) const {
    Floats value;
    for (int i = 0; i < lanes; ++i) value[i] = x[places[i] & 15];
    return value;
  }
};
#endif

}  // namespace
