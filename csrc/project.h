// Projection: dense weights in, N:M weights out, one pass over the memory.
#pragma once

#include "nmsparsity.h"
#include "select.h"
#include "tiles.h"

namespace {

constexpr int max_rows = 64;

// `units` groups of `rows` rows, `step` elements apart, each a contiguous [rows, inner] block.
template <class T>
struct Run {
  const T* source;
  T* sparse;
  std::uint8_t* mask;
  std::int64_t units, step, inner;
  int rows, keep;
  bool is_signed;
};

template <class T>
struct Found {
  std::int64_t nonzeros = 0;
  T largest = 0;
};

template <class T, int Bytes, bool Plain>
class Walk {
  using S = Select<T, Bytes, Plain>;
  using V = typename S::V;
  static constexpr int lanes = Lanes<T, Bytes>::count;
  static constexpr int side = Tile<T, Bytes>::side;

 public:
  Walk(const Run<T>& run, Found<T>& found)
      : run_(run), found_(found), kernel_(S::choose(run.rows, run.keep)) {}

  void all() {
    std::int64_t unit = run_.inner == 1 ? contiguous() : 0;
    for (; unit < run_.units; unit += lanes) {
      const std::int64_t count = run_.units - unit < lanes ? run_.units - unit : lanes;
      const std::int64_t column = whole_columns(unit, count);
      if (column < run_.inner) other_columns(unit, count, column);
    }
    flush();
  }

 private:
  void select(const T* source, T* sparse, std::uint8_t* mask, std::int64_t stride,
              std::int64_t count, std::int64_t next) {
    // Before a 16-bit count can run over; count is at most max_rows.
    if ((blocks_ += count) > 32767 / max_rows) flush(), blocks_ = count;
    tally_ = kernel_({source, sparse, mask, stride, count, next, run_.rows, run_.keep,
                      run_.is_signed}, tally_);
  }

  void flush() {
    for (int i = 0; i < lanes; ++i) {
      found_.nonzeros += tally_.nonzeros[i];
      if (tally_.largest[i] > found_.largest) found_.largest = tally_.largest[i];
    }
    tally_ = {};
    blocks_ = 0;
  }

  // Columns that fill whole vectors where they lie; returns the first that does not.
  std::int64_t whole_columns(std::int64_t unit, std::int64_t count) {
    const std::int64_t end = run_.inner - run_.inner % lanes;
    for (std::int64_t column = 0; column < end; column += lanes) {
      const std::int64_t at = unit * run_.step + column;
      select(run_.source + at, run_.sparse + at, run_.mask ? run_.mask + at : nullptr, run_.inner,
             count, run_.step);
    }
    return end;
  }

  // The remaining columns of several units, brought together so that no lane is idle.
  void other_columns(std::int64_t unit, std::int64_t count, std::int64_t first) {
    std::int64_t at = unit * run_.step + first, column = first;
    std::int64_t left = count * (run_.inner - first);
    while (left > 0) {
      std::int64_t offset[lanes] = {};
      const int used = left < lanes ? static_cast<int>(left) : lanes;
      for (int i = 0; i < used; ++i) {
        offset[i] = at++;
        if (++column == run_.inner) at += run_.step - run_.inner + first, column = first;
      }
      pack_select_unpack(offset, used);
      left -= used;
    }
  }

  void pack_select_unpack(const std::int64_t* offset, int used) {
    for (int row = 0; row < run_.rows; ++row) {
      const T* from = run_.source + row * run_.inner;
      if (used == lanes) {
        store(tile_ + row * lanes, collect(from, offset, all_lanes{}));
      } else {
        for (int i = 0; i < lanes; ++i) tile_[row * lanes + i] = i < used ? from[offset[i]] : 0;
      }
    }
    select(tile_, tile_, run_.mask ? flags_ : nullptr, lanes, 1, 0);
    for (int row = 0; row < run_.rows; ++row) {
      T* to = run_.sparse + row * run_.inner;
      for (int i = 0; i < used; ++i) to[offset[i]] = tile_[row * lanes + i];
    }
    if (!run_.mask) return;
    for (int row = 0; row < run_.rows; ++row) {
      std::uint8_t* to = run_.mask + row * run_.inner;
      for (int i = 0; i < used; ++i) to[offset[i]] = flags_[row * lanes + i];
    }
  }

  using all_lanes = std::make_integer_sequence<int, lanes>;

  template <int... I>
  static NMS_INLINE V collect(const T* from, const std::int64_t* offset,
                              std::integer_sequence<int, I...>) {
    return V{from[offset[I]]...};
  }

  // inner == 1: transpose `lanes` stretches of `span` elements at a time. Returns the groups done.
  std::int64_t contiguous() {
    const int rows = run_.rows, span = rows < side ? side : rows;
    if (span % side || span % rows || run_.step != rows) return 0;
    const std::int64_t size = std::int64_t{span} * lanes;
    const std::int64_t end = run_.units * rows / size * size;
    for (std::int64_t at = 0; at < end;) {
      const std::int64_t fitting = max_rows / span, left = (end - at) / size;
      const std::int64_t total = size * (left < fitting ? left : fitting);
      for (std::int64_t i = 0; i < total; i += size) {
        for (int k = 0; k < span; k += side) {
          Tile<T, Bytes>::pack(run_.source + at + i + k, span, tile_ + i + k * lanes);
        }
      }
      select(tile_, tile_, run_.mask ? flags_ : nullptr, lanes, total / (rows * lanes),
             rows * lanes);
      for (std::int64_t i = 0; i < total; i += size) {
        for (int k = 0; k < span; k += side) {
          Tile<T, Bytes>::unpack(tile_ + i + k * lanes, run_.sparse + at + i + k, span);
        }
        if (run_.mask) unpack_flags(flags_ + i, run_.mask + at + i, span);
      }
      at += total;
    }
    return end / rows;
  }

  static void unpack_flags(const std::uint8_t* from, std::uint8_t* to, int span) {
    for (int i = 0; i < lanes; ++i) {
      for (int k = 0; k < span; ++k) to[i * span + k] = from[k * lanes + i];
    }
  }

  const Run<T> run_;
  Found<T>& found_;
  const typename S::Kernel kernel_;
  Tally<V> tally_;
  std::int64_t blocks_ = 0;
  alignas(Bytes) T tile_[max_rows * lanes];
  std::uint8_t flags_[max_rows * lanes];
};

// The widest vectors that the columns fill; where they fill none, columns are packed.
template <class T, int Bytes>
void walk(const Run<T>& run, Found<T>& found) {
  // Rare, and not worth the code at every width.
  if (run.mask || run.is_signed) return Walk<T, 16, false>(run, found).all();
  if constexpr (Bytes > 32) {
    // Measured on Zen 4: the transposes of contiguous groups are faster in 256 bits.
    if (run.inner == 1) return walk<T, Bytes / 2>(run, found);
  }
  if constexpr (Bytes > 16) {
    constexpr std::int64_t narrowest = 16 / sizeof(T);
    if (run.inner >= narrowest && run.inner < Lanes<T, Bytes>::count) {
      return walk<T, Bytes / 2>(run, found);
    }
  }
  Walk<T, Bytes, true>(run, found).all();
}

template <class T>
void project_units(const nms_weight& weight, std::int64_t begin, std::int64_t end,
                   Found<T>& found) {
  const std::int64_t groups = (weight.length + weight.m - 1) / weight.m;
  const std::int64_t whole = weight.length / weight.m, row = weight.length * weight.inner;
  const auto run_of = [&](std::int64_t unit, std::int64_t units, int rows) {
    const std::int64_t at = unit / groups * row + unit % groups * weight.m * weight.inner;
    const int keep = weight.n < rows ? weight.n : rows;
    const Run<T> run{static_cast<const T*>(weight.dense) + at, static_cast<T*>(weight.sparse) + at,
                     weight.mask ? weight.mask + at : nullptr,
                     units, rows * weight.inner, weight.inner, rows, keep,
                     weight.is_signed != 0};
    walk<T, NMS_BYTES>(run, found);
  };
  if (whole == groups) return run_of(begin, end - begin, weight.m);
  const int rest = static_cast<int>(weight.length - whole * weight.m);
  if (!whole) return run_of(begin, end - begin, rest);
  while (begin < end) {
    const std::int64_t left = whole - begin % groups;
    const std::int64_t units = left <= 0 ? 1 : left < end - begin ? left : end - begin;
    run_of(begin, units, left <= 0 ? rest : weight.m);
    begin += units;
  }
}

// Infinity's bits, as an integer; every NaN is above.
constexpr std::int32_t infinity_of[] = {0x7f800000, 0x7c00, 0x7f80};

template <class T>
void project_as(nms_weight& weight, std::int64_t begin, std::int64_t end) {
  Found<T> found;
  project_units<T>(weight, begin, end, found);
  __atomic_fetch_add(&weight.nonzeros, found.nonzeros, __ATOMIC_RELAXED);
  if (found.largest >= infinity_of[weight.dtype]) {
    __atomic_store_n(&weight.bad, 1, __ATOMIC_RELAXED);
  }
}

void project(nms_weight& weight, std::int64_t begin, std::int64_t end) {
  weight.dtype == NMS_FLOAT32 ? project_as<std::int32_t>(weight, begin, end)
                              : project_as<std::int16_t>(weight, begin, end);
}

}  // namespace
