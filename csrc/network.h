// Selection in vectors: the k-th largest of many rows, lane by lane, by sorting networks.
#pragma once

#include <utility>

#include "lanes.h"

namespace {

template <class V>
NMS_INLINE void order(V& first, V& second) {
  const V high = larger(first, second);
  second = smaller(first, second);
  first = high;
}

template <int Step, int Distance, int... I, class V>
NMS_INLINE void order_all(V* x, std::integer_sequence<int, I...>) {
  (order(x[I * Step], x[I * Step + Distance]), ...);
}

// Batcher's odd-even merge of two sorted halves (Batcher 1968), larger keys first.
template <int Count, int Step, class V>
NMS_INLINE void merge_halves(V* x) {
  if constexpr (2 * Step < Count) {
    merge_halves<Count, 2 * Step>(x);
    merge_halves<Count, 2 * Step>(x + Step);
    constexpr int pairs = (Count / Step - 2) / 2;
    order_all<2 * Step, Step>(x + Step, std::make_integer_sequence<int, pairs>{});
  } else {
    order(x[0], x[Step]);
  }
}

template <int Count, class V>
NMS_INLINE void sort(V* x) {
  if constexpr (Count > 1) {
    sort<Count / 2>(x);
    sort<Count / 2>(x + Count / 2);
    merge_halves<Count, 1>(x);
  }
}

// Sort what first rises and then falls, or the other way round.
template <int Count, class V>
NMS_INLINE void sort_bitonic(V* x) {
  if constexpr (Count > 1) {
    order_all<1, Count / 2>(x, std::make_integer_sequence<int, Count / 2>{});
    sort_bitonic<Count / 2>(x);
    sort_bitonic<Count / 2>(x + Count / 2);
  }
}

template <int Width, int... I, class V>
NMS_INLINE void keep_larger(V* top, const V* more, std::integer_sequence<int, I...>) {
  ((top[I] = larger(top[I], more[Width - 1 - I])), ...);
}

// The k-th largest of `rows` keys, k <= Width, where `at(row)` gives the keys of one row.
// Holds the Width largest so far, sorted, and merges Width more at a time.
template <class T, class V, int Width, class At>
NMS_INLINE V kth_largest(int rows, int k, At at) {
  V top[Width], more[Width];
  // Keys above all others take the places that k leaves free: the answer is always the last.
#pragma GCC unroll 32
  for (int i = 0; i < Width; ++i) {
    top[i] = fill<V>(i < Width - k ? magnitude_bits<T> : lowest<T>);
  }
  for (int row = 0; row < rows; row += Width) {
#pragma GCC unroll 32
    for (int i = 0; i < Width; ++i) {
      more[i] = row + i < rows ? at(row + i) : fill<V>(lowest<T>);
    }
    sort<Width>(more);
    keep_larger<Width>(top, more, std::make_integer_sequence<int, Width>{});
    sort_bitonic<Width>(top);
  }
  return top[Width - 1];
}

}  // namespace
