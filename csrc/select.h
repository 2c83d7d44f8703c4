// Which rows of a block to keep: `rows` rows of vectors, one independent group in every lane.
#pragma once

#include "network.h"

namespace {

// Row r of the groups is at source + r * stride; sparse may be source, mask may be null.
template <class T>
struct Block {
  const T* source;
  T* sparse;
  std::uint8_t* mask;
  std::int64_t stride;
  int rows, keep;
};

template <class V>
struct Tally {
  V nonzeros{}, largest{};
};

template <class T, int Bytes, bool Signed>
struct Select {
  using V = Vector<T, Bytes>;
  using Kernel = void (*)(const Block<T>&, Tally<V>&);

  static NMS_INLINE V bits(const Block<T>& block, int row) {
    return load<V>(block.source + row * block.stride);
  }

  static NMS_INLINE V ranked(const Block<T>& block, int row) {
    return key<Signed, T>(bits(block, row));
  }

  // Row `row` keeps the lanes where `kept` is -1; the others become +0.0.
  static NMS_INLINE void write(const Block<T>& block, int row, V raw, V kept, Tally<V>& tally) {
    const V sparse = raw & kept;
    store(block.sparse + row * block.stride, sparse);
    tally.nonzeros -= (sparse & magnitude_bits<T>) > 0;
    tally.largest = larger(tally.largest, raw & magnitude_bits<T>);
    if (block.mask) {
      typedef std::uint8_t Flags __attribute__((vector_size(Lanes<T, Bytes>::count)));
      store(block.mask + row * block.stride, __builtin_convertvector(kept & 1, Flags));
    }
  }

  // Up to four rows: count for every row the rows that go before it.
  static void by_rank(const Block<T>& block, Tally<V>& tally) {
    V raw[4], keys[4], before[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      raw[i] = i < block.rows ? bits(block, i) : V{};
      keys[i] = i < block.rows ? key<Signed, T>(raw[i]) : fill<V>(lowest<T>);
      before[i] = fill<V>(static_cast<T>(i));
    }
#pragma GCC unroll 4
    for (int i = 1; i < 4; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < i; ++j) {
        const V later_wins = keys[i] > keys[j];  // -1, and 0 for ties: the lower index wins.
        before[i] += later_wins;
        before[j] -= later_wins;
      }
    }
    const V keep = fill<V>(static_cast<T>(block.keep));
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      if (i < block.rows) write(block, i, raw[i], keep > before[i], tally);
    }
  }

  // Any number of rows: find the smallest key that stays, then settle ties from the front.
  template <int Width>
  static void by_threshold(const Block<T>& block, Tally<V>& tally) {
    const int rows = block.rows, keep = block.keep;
    // The keep-th largest is the (rows - keep + 1)-th smallest: look from the nearer end.
    const bool flip = keep > rows - keep + 1;
    const V flipped = fill<V>(static_cast<T>(flip ? -1 : 0));
    const V threshold = flipped ^ kth_largest<T, V, Width>(
        rows, flip ? rows - keep + 1 : keep,
        [&](int row) { return ranked(block, row) ^ flipped; });
    V below{};
    for (int row = 0; row < rows; ++row) below -= threshold > ranked(block, row);
    if (any(below != static_cast<T>(rows - keep))) return settle_ties(block, threshold, tally);
    for (int row = 0; row < rows; ++row) {
      const V raw = bits(block, row);
      write(block, row, raw, ~(threshold > key<Signed, T>(raw)), tally);
    }
  }

  static void settle_ties(const Block<T>& block, V threshold, Tally<V>& tally) {
    V room = fill<V>(static_cast<T>(block.keep));
    for (int row = 0; row < block.rows; ++row) room += ranked(block, row) > threshold;
    for (int row = 0; row < block.rows; ++row) {
      const V raw = bits(block, row), keys = key<Signed, T>(raw);
      const V tied = (keys == threshold) & (room > 0);
      room += tied;
      write(block, row, raw, (keys > threshold) | tied, tally);
    }
  }

  static Kernel choose(int rows, int keep) {
    const int k = keep < rows - keep + 1 ? keep : rows - keep + 1;
    if (rows <= 4) return by_rank;
    if (k <= 1) return by_threshold<1>;
    if (k <= 2) return by_threshold<2>;
    if (k <= 4) return by_threshold<4>;
    if (k <= 8) return by_threshold<8>;
    if (k <= 16) return by_threshold<16>;
    return by_threshold<32>;
  }
};

}  // namespace
