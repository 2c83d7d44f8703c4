// Vectors of integers. Ranking needs no floating point: the magnitude of a float, read as an
// integer, has the same order, in fp32, fp16 and bf16 alike.
//
// Everything here and in the files that include it has internal linkage: each instruction set
// compiles its own copy, and the linker must never merge one with another's.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

// The sanitizer build leaves this to the compiler: it is done in a fraction of the time.
#if !defined(NMS_INLINE)
#define NMS_INLINE inline __attribute__((always_inline))
#endif

namespace {

template <class T, int Bytes>
struct Lanes {
  typedef T Vector __attribute__((vector_size(Bytes)));
  static constexpr int count = Bytes / static_cast<int>(sizeof(T));
};

template <class T, int Bytes>
using Vector = typename Lanes<T, Bytes>::Vector;

template <class V>
NMS_INLINE V load(const void* from) {
  V value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class V>
NMS_INLINE void store(void* to, const V& value) {
  std::memcpy(to, &value, sizeof value);
}

template <class V, class T>
NMS_INLINE V fill(T value) {
  return V{} + value;
}

template <class V>
NMS_INLINE V larger(V a, V b) {
  return a > b ? a : b;
}

template <class V>
NMS_INLINE V smaller(V a, V b) {
  return a < b ? a : b;
}

// Whether any bit of the vector is set.
template <class V>
NMS_INLINE bool any(V value) {
#if defined(__AVX2__)
  if constexpr (sizeof(V) == 32) {
    const auto bits = load<__m256i>(&value);
    return !_mm256_testz_si256(bits, bits);
  }
#endif
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64) {
    const auto bits = load<__m512i>(&value);
    return _mm512_test_epi64_mask(bits, bits) != 0;
  }
#endif
  std::uint64_t words[sizeof(V) / 8], all = 0;
  std::memcpy(words, &value, sizeof value);
  for (const auto word : words) all |= word;
  return all != 0;
}

template <class T>
constexpr T lowest = static_cast<T>(T{1} << (sizeof(T) * 8 - 2)) * -2;

template <class T>
constexpr T magnitude_bits = static_cast<T>(~lowest<T>);

}  // namespace
