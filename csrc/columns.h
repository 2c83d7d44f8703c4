// Many pixels: lanes are pixels. A tile of inputs lies in the first cache; every kept weight is
// multiplied with the line of its input.
#pragma once

#include <limits>
#include <numeric>

#include "activate.h"
#include "gather.h"
#include "scratch.h"

namespace {

constexpr std::int64_t most_rows = 512;  // whose sums stay in the second cache
constexpr int most_sums = lanes == 16 ? 16 : 12;  // vectors, in registers

// What takes many registers; the line is still in the first cache.
__attribute__((noinline)) void activate_line(float* line, std::int64_t count, int activation) {
  for (std::int64_t i = 0; i < count; i += lanes) {
    store_first(line + i, activate(load_first(line + i, count - i), activation), count - i);
  }
}

// Where rows of pixels of one image go straight from the registers.
struct Outlet {
  float* y;
  const float *residual, *bias;  // or null
  std::int64_t pitch, rows;
  int count, activation;  // elements of the last vector
  float low;              // none is below it

  template <int Vectors>
  NMS_INLINE void put(int row, const Floats* sums) const {
    if (row >= rows) return;
    const Floats least = all_of(low);
    const Floats added = all_of(bias ? bias[row] : 0.0f);
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) {
      const std::int64_t at = row * pitch + j * lanes;
      const bool whole = j + 1 < Vectors || count == lanes;
      Floats value = sums[j] + added;
      if (residual) value += whole ? load_floats(residual + at) : load_first(residual + at, count);
      value = value < least ? least : value;
      whole ? store(y + at, value) : store_first(y + at, value, count);
    }
    constexpr int others = (Vectors - 1) * lanes;
    if (activation > NMS_RELU) activate_line(y + row * pitch, others + count, activation);
  }
};

// sums[row] += values * lines, for the rows of one block; `from` is null where sums begin at zero,
// `outlet` where they are not complete yet. Some rows take turns, and words of positions are loaded
// before they are needed: loads whose address waits for a load would leave the multipliers idle.
template <int Vectors, int Slots>
void add_block(const float* values, const std::uint32_t* places, std::int64_t windows,
               const float* lines, std::int64_t pitch, const float* from, float* to,
               const Outlet* outlet) {
  constexpr int entries = std::lcm(Slots, 8), step = entries / Slots;
  constexpr int line = Vectors * lanes;
  constexpr int rows = Vectors * 4 <= most_sums ? 4 : Vectors * 2 <= most_sums ? 2 : 1;
  for (int row = 0; row < lanes; row += rows, to += rows * line) {
    Floats sum[rows][Vectors];
    std::uint32_t next[rows], word[rows];
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      next[r] = places[row + r];
#pragma GCC unroll 8
      for (int j = 0; j < Vectors; ++j) {
        sum[r][j] = from ? load_floats(from + (row + r) * line + j * lanes) : Floats{};
      }
    }
    const float *value = values + row, *x = lines;
    const std::uint32_t *its_places = places + row;
    const std::uint32_t* last = its_places + (windows * Slots - 1) / 8 * lanes;
    for (std::int64_t w = 0; w < windows; w += step) {
#pragma GCC unroll 24
      for (int e = 0; e < entries; ++e) {
        if (e && e % Slots == 0 && w + e / Slots >= windows) break;
        if (e % 8 == 0) {
          its_places += its_places < last ? lanes : 0;
#pragma GCC unroll 4
          for (int r = 0; r < rows; ++r) {
            word[r] = next[r];
            next[r] = its_places[r];
          }
        }
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r) {
          const std::uint32_t place = word[r] >> (e % 8 * 4) & 15;
          const float* its = x + (e / Slots * window + std::int64_t{place}) * pitch;
          const Floats weight = all_of(value[e * lanes + r]);
#pragma GCC unroll 8
          for (int j = 0; j < Vectors; ++j) sum[r][j] += weight * load_floats(its + j * lanes);
        }
      }
      value += entries * lanes;
      x += step * window * pitch;
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      if (outlet) {
        outlet->put<Vectors>(row + r, sum[r]);
        continue;
      }
#pragma GCC unroll 8
      for (int j = 0; j < Vectors; ++j) store(to + r * line + j * lanes, sum[r][j]);
    }
  }
}

template <int Vectors>
class Columns {
 public:
  static constexpr int line = Vectors * lanes;

  Columns(const nms_product& p, std::int64_t group, std::int64_t begin, std::int64_t count)
      : p_(p), group_(group), begin_(begin), count_(count),
        blocks_((p.rows + lanes - 1) / lanes), windows_(windows_of(p)),
        gather_(p, group, begin, count, line) {
    for (std::int64_t i = 0; i < count; ++i) outputs_[i] = output_of(p, gather_.pixel(i));
  }

  // The blocks [from, to) of rows.
  void run(std::int64_t from, std::int64_t to) {
    constexpr std::int64_t most = most_rows / lanes;
    for (; from < to; from += most) some(from, from + most < to ? from + most : to);
  }

 private:
  void some(std::int64_t from, std::int64_t to) {
    const bool in_place = can_read_in_place(), is_straight = can_finish_in_registers();
    float* tile = scratch().floats((p_.depth * window + lanes + most_rows) * line);
    float* out = tile + p_.depth * window * line;
    float* sums = out + lanes * line;
    for (std::int64_t w = 0; w < windows_; w += p_.depth) {
      const std::int64_t end = w + p_.depth < windows_ ? w + p_.depth : windows_;
      const float* lines = tile;
      if (in_place) {
        lines = p_.x + (group_ * p_.channels + w * window) * p_.x_channel + first_of_input();
      } else {
        gather_.windows(w, end, tile);
      }
      for (std::int64_t block = from; block < to; ++block) {
        float* its = sums + (block - from) * lanes * line;
        const bool last = end == windows_, straight = last && is_straight;
        const Outlet outlet = straight ? outlet_of(block) : Outlet{};
        if (in_place) announce(end, block - from, to - from);
        // The last sums stay in the first cache, where `finish` finds them.
        add(block, w, end, lines, in_place ? p_.x_channel : line, w ? its : nullptr,
            last ? out : its, straight ? &outlet : nullptr);
        if (last && !straight) finish(block, out);
      }
    }
  }

  // A share of the inputs that come next is on its way while there is work to do.
  void announce(std::int64_t w, std::int64_t share, std::int64_t shares) const {
    const std::int64_t next = w < windows_ ? w : 0, end = next + p_.depth;
    const std::int64_t count = ((end < windows_ ? end : windows_) - next) * window;
    const float* x = p_.x + (group_ * p_.channels + next * window) * p_.x_channel +
                     first_of_input() + (w < windows_ ? 0 : line);
    for (std::int64_t i = count * share / shares; i < count * (share + 1) / shares; ++i) {
      for (int k = 0; k < line; k += 16) __builtin_prefetch(x + i * p_.x_channel + k, 0, 2);
    }
  }

  // Whole vectors of pixels that lie as they are needed.
  bool can_read_in_place() const {
    const std::int64_t size = p_.out_height * p_.out_width;
    return is_pointwise(p_) && p_.x_pixel == 1 && count_ == line &&
           begin_ / size == (begin_ + count_ - 1) / size && windows_ * window == p_.channels &&
           p_.x_channel % lanes == 0 && reinterpret_cast<std::uintptr_t>(p_.x) % NMS_BYTES == 0 &&
           (begin_ % size) % lanes == 0 && p_.x_image % lanes == 0;
  }

  bool can_finish_in_registers() const {
    const std::int64_t size = p_.out_height * p_.out_width;
    return p_.y_pixel == 1 && begin_ % size + count_ <= size;
  }

  Outlet outlet_of(std::int64_t block) const {
    const std::int64_t row = group_ * p_.rows + block * lanes;
    const std::int64_t at = outputs_[0] + row * p_.y_channel;
    return {p_.y + at, p_.residual ? p_.residual + at : nullptr, p_.bias ? p_.bias + row : nullptr,
            p_.y_channel, p_.rows - block * lanes,
            static_cast<int>(count_ - (Vectors - 1) * lanes), p_.activation,
            p_.activation == NMS_RELU ? 0.0f : -std::numeric_limits<float>::infinity()};
  }

  std::int64_t first_of_input() const {
    const std::int64_t size = p_.out_height * p_.out_width;
    return begin_ / size * p_.x_image + begin_ % size;
  }

  void add(std::int64_t block, std::int64_t w, std::int64_t end, const float* lines,
           std::int64_t pitch, const float* sums, float* to, const Outlet* outlet) {
    const std::int64_t entry = ((group_ * blocks_ + block) * p_.windows + w) * p_.slots;
    const float* values = p_.values + entry * lanes;
    const std::uint32_t* places = p_.places + entry / 8 * lanes;
    const auto run = [&](auto* block) {
      block(values, places, end - w, lines, pitch, sums, to, outlet);
    };
    switch (p_.slots) {
      case 1: return run(add_block<Vectors, 1>);
      case 2: return run(add_block<Vectors, 2>);
      case 4: return run(add_block<Vectors, 4>);
      case 6: return run(add_block<Vectors, 6>);
      case 8: return run(add_block<Vectors, 8>);
      case 12: return run(add_block<Vectors, 12>);
      default: return run(add_block<Vectors, 16>);
    }
  }

  // Bias, residual and activation, and where the sums belong.
  void finish(std::int64_t block, const float* sums) {
    p_.y_pixel == 1 ? planar(block, sums) : interleaved(block, sums);
  }

  void planar(std::int64_t block, const float* sums) {
    const std::int64_t size = p_.out_height * p_.out_width;
    for (int i = 0; i < lanes && block * lanes + i < p_.rows; ++i, sums += line) {
      const std::int64_t row = group_ * p_.rows + block * lanes + i;
      const Floats bias = all_of(p_.bias ? p_.bias[row] : 0.0f);
      for (std::int64_t done = 0; done < count_;) {  // image by image
        const std::int64_t pixel = begin_ + done, left = size - pixel % size;
        const std::int64_t end = count_ - done < left ? count_ : done + left;
        const std::int64_t at = outputs_[done] + row * p_.y_channel - done;
        for (std::int64_t k = done; k < end; k += lanes) {
          put(load_first(sums + k, end - k) + bias, at + k, end - k);
        }
        done = end;
      }
    }
  }

  void interleaved(std::int64_t block, const float* sums) {
    const std::int64_t row = group_ * p_.rows + block * lanes, rows = p_.rows - block * lanes;
    const Floats bias = p_.bias ? load_first(p_.bias + row, rows) : Floats{};
    for (int j = 0; j < Vectors; ++j) {
      Floats x[lanes];
      for (int i = 0; i < lanes; ++i) x[i] = load_floats(sums + i * line + j * lanes);
      transpose(x);
      for (int i = 0; i < lanes && j * lanes + i < count_; ++i) {
        put(x[i] + bias, outputs_[j * lanes + i] + row, rows);
      }
    }
  }

  NMS_INLINE void put(Floats value, std::int64_t at, std::int64_t count) const {
    if (p_.residual) value += load_first(p_.residual + at, count);
    if (p_.activation) value = activate(value, p_.activation);
    store_first(p_.y + at, value, count);
  }

  const nms_product& p_;
  const std::int64_t group_, begin_, count_, blocks_, windows_;
  Gather gather_;
  std::int64_t outputs_[line];
};

}  // namespace
