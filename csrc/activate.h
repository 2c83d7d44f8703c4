// What follows the product, while it is still in registers.
#pragma once

#include "floats.h"
#include "product.h"

namespace {

NMS_INLINE Floats clamp(Floats x, float low, float high) {
  const Floats above = x < all_of(low) ? all_of(low) : x;
  return above > all_of(high) ? all_of(high) : above;
}

// e^x to 2 ulp for |x| <= 87: 2^n * e^r, |r| <= ln(2) / 2. NaN stays NaN.
NMS_INLINE Floats exponential(Floats x) {
  x = clamp(x, -87.0f, 87.0f);
  const Floats magic = all_of(12582912.0f);  // Adding it rounds to an integer.
  const Floats shifted = x * 1.44269504f + magic, n = shifted - magic;
  const Floats r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Floats p = all_of(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  const Words bits = load<Words>(&shifted) << 23;
  const Words scale = bits + 0x3f800000u;
  return p * load<Floats>(&scale);
}

// Abramowitz and Stegun 7.1.26: within 1.5e-7.
NMS_INLINE Floats error_function(Floats x) {
  const Floats size = x < 0.0f ? -x : x;
  const Floats t = 1.0f / (size * 0.3275911f + 1.0f);
  Floats p = t * 1.061405429f - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const Floats y = 1.0f - p * t * exponential(-size * size);
  return x < 0.0f ? -y : y;
}

NMS_INLINE Floats sigmoid(Floats x) { return 1.0f / (1.0f + exponential(-x)); }

NMS_INLINE Floats activate(Floats x, int activation) {
  switch (activation) {
    case NMS_RELU:
      return x < 0.0f ? Floats{} : x;  // NaN stays NaN.
    case NMS_GELU:
      return x * 0.5f * (error_function(x * 0.70710678f) + 1.0f);
    case NMS_GELU_TANH:
      return x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x));
    case NMS_SILU:
      return x * sigmoid(x);
    default:
      return x;
  }
}

}  // namespace
