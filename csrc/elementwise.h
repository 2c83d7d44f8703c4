// What needs no groups: is the sparse weight still ours, and the term of the gradient.
#pragma once

#include "halves.h"
#include "nmsparsity.h"

namespace {

// Every element is 0 or dense's own bits; nonzeros are counted. On the way, where there is a
// gradient: grad + alpha * (dense - sparse), bit for bit what torch.add(alpha=) makes of it on a
// CPU with fused multiply-add: alpha is rounded to the dtype, the rest is fp32, rounded once.
template <class Format, bool HasGrad>
void add_term_as(nms_weight& weight, std::int64_t begin, std::int64_t end) {
  using T = typename Format::Bits;
  const T* __restrict sparse = static_cast<const T*>(weight.sparse);
  const T* __restrict dense = static_cast<const T*>(weight.dense);
  T* __restrict grad = static_cast<T*>(weight.grad);
  const float alpha = Format::widen(Format::narrow(weight.alpha));
  std::int32_t nonzeros = 0;
  T bad = 0;
  for (std::int64_t i = begin; i < end; ++i) {
    const T nonzero = (sparse[i] & magnitude_bits<T>) != 0;
    nonzeros += nonzero;
    bad |= nonzero & (sparse[i] != dense[i]);
    if constexpr (HasGrad) {
      const float term = Format::widen(dense[i]) - Format::widen(sparse[i]);
      grad[i] = Format::narrow(__builtin_fmaf(alpha, term, Format::widen(grad[i])));
    }
  }
  __atomic_fetch_add(&weight.nonzeros, nonzeros, __ATOMIC_RELAXED);
  if (bad) __atomic_store_n(&weight.bad, 1, __ATOMIC_RELAXED);
}

template <class Format>
void add_term_of(nms_weight& weight, std::int64_t begin, std::int64_t end) {
  weight.grad ? add_term_as<Format, true>(weight, begin, end)
              : add_term_as<Format, false>(weight, begin, end);
}

void add_term(nms_weight& weight, std::int64_t begin, std::int64_t end) {
  if (weight.dtype == NMS_FLOAT32) return add_term_of<Float32>(weight, begin, end);
  if (weight.dtype == NMS_FLOAT16) return add_term_of<Float16>(weight, begin, end);
  add_term_of<BFloat16>(weight, begin, end);
}

}  // namespace
