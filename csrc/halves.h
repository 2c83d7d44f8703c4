// fp32, fp16 and bf16 as bits, to fp32 and back; branch-free, so that compilers vectorise it.
#pragma once

#include "lanes.h"

namespace {

NMS_INLINE float as_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

NMS_INLINE std::uint32_t as_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

struct Float32 {
  using Bits = std::uint32_t;
  static NMS_INLINE float widen(std::uint32_t bits) { return as_float(bits); }
  static NMS_INLINE std::uint32_t narrow(float value) { return as_bits(value); }
};

struct BFloat16 {
  using Bits = std::uint16_t;

  static NMS_INLINE float widen(std::uint16_t half) { return as_float(std::uint32_t{half} << 16); }

  // To nearest, ties to even.
  static NMS_INLINE std::uint16_t narrow(float value) {
    const std::uint32_t bits = as_bits(value);
    const std::uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return static_cast<std::uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
  }
};

struct Float16 {
  using Bits = std::uint16_t;

  static NMS_INLINE float widen(std::uint16_t half) {
    const std::uint32_t shifted = (half & 0x7fffu) << 13, exponent = shifted & (0x7c00u << 13);
    const std::uint32_t normal = shifted + ((127 - 15) << 23);
    // A subnormal half: let a subtraction do the normalising.
    const std::uint32_t tiny = as_bits(as_float(normal + (1 << 23)) - as_float((127 - 14) << 23));
    const std::uint32_t huge = normal + ((128 - 16) << 23);
    const std::uint32_t bits = exponent == 0 ? tiny : exponent == (0x7c00u << 13) ? huge : normal;
    return as_float(bits | ((half & 0x8000u) << 16));
  }

  // To nearest, ties to even.
  static NMS_INLINE std::uint16_t narrow(float value) {
    const std::uint32_t all = as_bits(value), bits = all & 0x7fffffff;
    const std::uint32_t normal = (bits - ((127 - 15) << 23) + 0xfff + ((bits >> 13) & 1)) >> 13;
    // A subnormal half: adding 0.5 leaves its bits at the end of the fraction.
    const std::uint32_t tiny = as_bits(as_float(bits) + 0.5f) - as_bits(0.5f);
    const std::uint32_t huge = bits > 0x7f800000 ? 0x7e00 : 0x7c00;
    const std::uint32_t half =
        bits >= (143u << 23) ? huge : bits < (113u << 23) ? tiny : normal;
    return static_cast<std::uint16_t>(half | ((all >> 16) & 0x8000));
  }
};

}  // namespace
