// Products of random layers on exactly sized heap blocks against a scalar reference.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../product.h"

namespace {

struct Random {
  std::uint32_t state;
  int below(int end) {
    state = state * 1664525u + 1013904223u;
    return static_cast<int>((state >> 8) % static_cast<std::uint32_t>(end));
  }
  float value() { return static_cast<float>(below(2001) - 1000) / 1000.0f; }
};

// A block of its own, so that a step past its end is seen.
template <class T>
struct Block {
  T* data;
  explicit Block(std::int64_t count)
      : data(static_cast<T*>(std::malloc(static_cast<std::size_t>(count ? count : 1) * sizeof(T)))) {}
  ~Block() { std::free(data); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
};

double expected(const nms_product& p, std::int64_t g, std::int64_t row, std::int64_t image,
                std::int64_t y, std::int64_t x) {
  const std::int64_t lanes = nms_lanes(), blocks = (p.rows + lanes - 1) / lanes;
  const std::int64_t per_tap = (p.channels + 15) / 16, block = g * blocks + row / lanes;
  double sum = p.bias ? p.bias[g * p.rows + row] : 0.0;
  for (std::int64_t e = 0; e < std::int64_t{p.windows} * p.slots; ++e) {
    const std::int64_t entries = std::int64_t{p.windows} * p.slots, window = e / p.slots;
    const std::int64_t tap = window / per_tap;
    const std::uint32_t word = p.places[(block * entries / 8 + e / 8) * lanes + row % lanes];
    const std::int64_t channel = window % per_tap * 16 + (word >> (e % 8 * 4) & 15);
    const std::int64_t iy = y * p.stride_y - p.pad_y + tap / p.kernel_width * p.dilate_y;
    const std::int64_t ix = x * p.stride_x - p.pad_x + tap % p.kernel_width * p.dilate_x;
    if (tap >= std::int64_t{p.kernel_height} * p.kernel_width || channel >= p.channels || iy < 0 ||
        ix < 0 || iy >= p.height || ix >= p.width) {
      continue;
    }
    const float value = p.values[(block * entries + e) * lanes + row % lanes];
    sum += static_cast<double>(value) * p.x[image * p.x_image + (iy * p.width + ix) * p.x_pixel +
                                            (g * p.channels + channel) * p.x_channel];
  }
  return sum;
}

bool try_product(std::uint32_t seed) {
  Random r{seed};
  constexpr int slots[] = {1, 2, 4, 6, 8, 12, 16}, words[] = {8, 4, 2, 4, 1, 2, 1};
  const int kind = r.below(7);
  nms_product p{};
  p.groups = 1 + r.below(2), p.rows = 1 + r.below(40), p.channels = 1 + r.below(50);
  if (r.below(2)) p.channels = 16 * (1 + r.below(4));
  p.images = 1 + r.below(2), p.kernel_height = 1 + r.below(3), p.kernel_width = 1 + r.below(3);
  if (r.below(2)) p.kernel_height = p.kernel_width = 1;
  p.stride_y = 1 + r.below(2), p.stride_x = 1 + r.below(2);
  p.pad_y = r.below(3), p.pad_x = r.below(3), p.dilate_y = 1 + r.below(2), p.dilate_x = 1 + r.below(2);
  if (r.below(3) == 0) p.stride_x = p.stride_y = 1, p.pad_x = p.pad_y = 0;
  p.height = p.dilate_y * (p.kernel_height - 1) + 1 + r.below(9);
  p.width = p.dilate_x * (p.kernel_width - 1) + 1 + r.below(40);
  p.out_height = (p.height + 2 * p.pad_y - p.dilate_y * (p.kernel_height - 1) - 1) / p.stride_y + 1;
  p.out_width = (p.width + 2 * p.pad_x - p.dilate_x * (p.kernel_width - 1) - 1) / p.stride_x + 1;
  const std::int64_t in = p.height * p.width, out = p.out_height * p.out_width;
  const std::int64_t inputs = p.groups * p.channels, outputs = p.groups * p.rows;
  const bool last = r.below(2);
  p.x_image = in * inputs, p.x_channel = last ? 1 : in, p.x_pixel = last ? inputs : 1;
  p.y_image = out * outputs, p.y_channel = last ? 1 : out, p.y_pixel = last ? outputs : 1;
  p.slots = slots[kind];
  const std::int64_t per_tap = (p.channels + 15) / 16;
  const std::int64_t taps = std::int64_t{p.kernel_height} * p.kernel_width;
  p.windows = static_cast<std::int32_t>((taps * per_tap + words[kind] - 1) / words[kind] *
                                        words[kind]);
  p.mode = r.below(2);
  p.vectors = 1 + r.below(8);
  p.depth = words[kind] * (1 + r.below(4));
  p.turns = 1 + r.below(16);
  p.threads = 1 + r.below(2);
  const std::int64_t lanes = nms_lanes(), blocks = p.groups * ((p.rows + lanes - 1) / lanes);
  const std::int64_t entries = blocks * p.windows * p.slots * lanes;
  Block<float> values(entries), x(p.images * p.x_image), y(p.images * p.y_image), bias(outputs);
  Block<std::uint32_t> places(entries / 8);
  for (std::int64_t i = 0; i < entries; ++i) values.data[i] = r.value();
  for (std::int64_t i = 0; i < entries / 8; ++i) {
    places.data[i] = static_cast<std::uint32_t>(r.below(1 << 16)) << 16 |
                     static_cast<std::uint32_t>(r.below(1 << 16));
  }
  for (std::int64_t i = 0; i < p.images * p.x_image; ++i) x.data[i] = r.value();
  for (std::int64_t i = 0; i < outputs; ++i) bias.data[i] = r.value();
  p.values = values.data, p.places = places.data, p.x = x.data, p.y = y.data;
  p.bias = r.below(2) ? bias.data : nullptr;
  bool good = nms_multiply(&p) == NMS_OK;
  for (std::int64_t i = 0; good && i < p.images * out * outputs; ++i) {
    const std::int64_t image = i / (out * outputs), pixel = i / outputs % out, row = i % outputs;
    const float found = p.y[image * p.y_image + pixel * p.y_pixel + row * p.y_channel];
    const double want = expected(p, row / p.rows, row % p.rows, image, pixel / p.out_width,
                                 pixel % p.out_width);
    good = std::fabs(found - want) < 1e-3;
  }
  if (!good) std::printf("%s: product %u is wrong\n", nms_isa(), seed);
  return good;
}

bool try_products() {
  bool good = true;
  for (std::uint32_t seed = 0; seed < 300; ++seed) good &= try_product(seed * 7919u + 1);
  return good;
}

}  // namespace
