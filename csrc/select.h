// Which rows of a block to keep: `rows` rows of vectors, one independent group in every lane.
#pragma once

#include "network.h"

namespace {

// `count` blocks, `next` elements apart. Row r of a block is at source + r * stride; sparse may be
// source. Read only where not Plain: mask (may be null), is_signed (rank by value).
template <class T>
struct Blocks {
  const T* source;
  T* sparse;
  std::uint8_t* mask;
  std::int64_t stride, count, next;
  int rows, keep;
  bool is_signed;

  void advance() {
    source += next;
    sparse += next;
    if (mask) mask += next;
  }
};

template <class V>
struct Tally {
  V nonzeros{}, largest{};
};

// Plain: ranks magnitudes and writes no mask.
template <class T, int Bytes, bool Plain>
struct Select {
  using V = Vector<T, Bytes>;
  using Kernel = Tally<V> (*)(Blocks<T>, Tally<V>);

  static NMS_INLINE V bits(const Blocks<T>& block, int row) {
    return load<V>(block.source + row * block.stride);
  }

  // A float's bits as an integer of the same order: of its magnitude, or of its value.
  static NMS_INLINE V key(const Blocks<T>& block, V raw) {
    const V magnitude = raw & magnitude_bits<T>;
    if (Plain || !block.is_signed) return magnitude;
    const V sign = raw >> (static_cast<int>(sizeof(T)) * 8 - 1);
    return (magnitude ^ sign) - sign;  // -0.0 becomes 0, as it must: it equals +0.0.
  }

  static NMS_INLINE V key(const Blocks<T>& block, int row) { return key(block, bits(block, row)); }

  // Row `row` keeps the lanes where `kept` is -1; the others become +0.0.
  static NMS_INLINE void write(const Blocks<T>& block, int row, V raw, V kept, Tally<V>& tally) {
    const V magnitude = raw & magnitude_bits<T>;
    store(block.sparse + row * block.stride, raw & kept);
    tally.nonzeros -= (magnitude & kept) > 0;
    tally.largest = larger(tally.largest, magnitude);
    if (!Plain && block.mask) {
      typedef std::uint8_t Flags __attribute__((vector_size(Lanes<T, Bytes>::count)));
      store(block.mask + row * block.stride, __builtin_convertvector(kept & 1, Flags));
    }
  }

  // Up to four rows: count for every row those that go before it, less those behind it.
  template <bool Four>
  static NMS_INLINE void by_rank(const Blocks<T>& block, Tally<V>& tally) {
    V raw[4], keys[4], ahead[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const bool exists = Four || i < block.rows;
      raw[i] = exists ? bits(block, i) : V{};
      keys[i] = exists ? key(block, raw[i]) : fill<V>(lowest<T>);
      ahead[i] = fill<V>(static_cast<T>(block.keep - i));
    }
#pragma GCC unroll 4
    for (int i = 1; i < 4; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < i; ++j) {
        const V later_wins = keys[i] > keys[j];  // -1, and 0 for ties: the lower index wins.
        ahead[i] -= later_wins;
        ahead[j] += later_wins;
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      if (Four || i < block.rows) write(block, i, raw[i], ahead[i] > 0, tally);
    }
  }

  // Any number of rows: find the smallest key that stays, then settle ties from the front.
  template <int Width>
  static NMS_INLINE void by_threshold(const Blocks<T>& block, Tally<V>& tally) {
    const int rows = block.rows, keep = block.keep;
    // The keep-th largest is the (rows - keep + 1)-th smallest: look from the nearer end.
    const bool flip = keep > rows - keep + 1;
    const V flipped = fill<V>(static_cast<T>(flip ? -1 : 0));
    const V threshold = flipped ^ kth_largest<T, V, Width>(
        rows, flip ? rows - keep + 1 : keep, [&](int row) { return key(block, row) ^ flipped; });
    V below{};
    for (int row = 0; row < rows; ++row) below -= threshold > key(block, row);
    if (any(below != static_cast<T>(rows - keep))) return settle_ties(block, threshold, tally);
    for (int row = 0; row < rows; ++row) {
      const V raw = bits(block, row);
      write(block, row, raw, ~(threshold > key(block, raw)), tally);
    }
  }

  static NMS_INLINE void settle_ties(const Blocks<T>& block, V threshold, Tally<V>& tally) {
    V room = fill<V>(static_cast<T>(block.keep));
    for (int row = 0; row < block.rows; ++row) room += key(block, row) > threshold;
    for (int row = 0; row < block.rows; ++row) {
      const V raw = bits(block, row), mine = key(block, raw);
      const V tied = (mine == threshold) & (room > 0);
      room += tied;
      write(block, row, raw, (mine > threshold) | tied, tally);
    }
  }

  template <void (*One)(const Blocks<T>&, Tally<V>&)>
  static Tally<V> each(Blocks<T> block, Tally<V> tally) {
    for (std::int64_t i = 0; i < block.count; ++i, block.advance()) One(block, tally);
    return tally;
  }

  static Kernel choose(int rows, int keep) {
    const int k = keep < rows - keep + 1 ? keep : rows - keep + 1;
    if (rows == 4) return each<by_rank<true>>;
    if (rows < 4) return each<by_rank<false>>;
    if (k <= 1) return each<by_threshold<1>>;
    if (k <= 2) return each<by_threshold<2>>;
    if (k <= 4) return each<by_threshold<4>>;
    if (k <= 8) return each<by_threshold<8>>;
    if (k <= 16) return each<by_threshold<16>>;
    return each<by_threshold<32>>;
  }
};

}  // namespace
