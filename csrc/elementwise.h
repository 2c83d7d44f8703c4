// What needs no groups: is a weight still ours, and giving the dense weight back.
#pragma once

#include "halves.h"
#include "nmsparsity.h"

namespace {

// Every element is 0 or dense's own bits; nonzeros are counted.
template <class T>
void check_as(nms_weight& weight, std::int64_t begin, std::int64_t end) {
  const T* sparse = static_cast<const T*>(weight.sparse);
  const T* dense = static_cast<const T*>(weight.dense);
  std::int32_t nonzeros = 0;
  T bad = 0;
  for (std::int64_t i = begin; i < end; ++i) {
    const T nonzero = (sparse[i] & magnitude_bits<T>) != 0;
    nonzeros += nonzero;
    bad |= nonzero & (sparse[i] != dense[i]);
  }
  __atomic_fetch_add(&weight.nonzeros, nonzeros, __ATOMIC_RELAXED);
  if (bad) __atomic_store_n(&weight.bad, 1, __ATOMIC_RELAXED);
}

void check(nms_weight& weight, std::int64_t begin, std::int64_t end) {
  weight.dtype == NMS_FLOAT32 ? check_as<std::int32_t>(weight, begin, end)
                              : check_as<std::int16_t>(weight, begin, end);
}

// grad + alpha * (dense - sparse), bit for bit what torch.add(alpha=) makes of it on a CPU with
// fused multiply-add: alpha is rounded to the dtype, the rest is fp32, rounded once.
template <class Format>
void release_as(nms_weight& weight, std::int64_t begin, std::int64_t end) {
  using T = typename Format::Bits;
  T* __restrict sparse = static_cast<T*>(weight.sparse);
  const T* __restrict dense = static_cast<const T*>(weight.dense);
  T* __restrict grad = static_cast<T*>(weight.grad);
  if (grad) {
    const float alpha = Format::widen(Format::narrow(weight.alpha));
    for (std::int64_t i = begin; i < end; ++i) {
      const float term = Format::widen(dense[i]) - Format::widen(sparse[i]);
      grad[i] = Format::narrow(__builtin_fmaf(alpha, term, Format::widen(grad[i])));
    }
  }
  std::memcpy(sparse + begin, dense + begin, static_cast<std::size_t>(end - begin) * sizeof(T));
}

void release(nms_weight& weight, std::int64_t begin, std::int64_t end) {
  if (weight.dtype == NMS_FLOAT32) return release_as<Float32>(weight, begin, end);
  if (weight.dtype == NMS_FLOAT16) return release_as<Float16>(weight, begin, end);
  release_as<BFloat16>(weight, begin, end);
}

}  // namespace
