// Runs every kernel on exactly sized heap blocks against a scalar reference, to be compiled with
// -fsanitize=address,undefined: a read or write past a weight ends the program.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../nmsparsity.h"
#include "products.h"

namespace {

std::uint32_t state = 1;

std::uint32_t random_bits() {
  state = state * 1664525u + 1013904223u;
  return state >> 8;
}

// Chunks in reverse, one by one: nothing may depend on their order.
std::int32_t backwards(std::int64_t begin, std::int64_t end, std::int64_t, nms_range body,
                       void* context) {
  for (std::int64_t i = end; i-- > begin;) body(i, i + 1, context);
  return 0;
}

template <class T>
bool expected_kept(const std::vector<T>& x, std::int64_t at, std::int64_t stride, int size, int n,
                   int i) {
  const T magnitude = static_cast<T>(static_cast<T>(~T{0}) >> 1);
  int ahead = 0;
  for (int j = 0; j < size; ++j) {
    const T mine = x[at + i * stride] & magnitude, its = x[at + j * stride] & magnitude;
    ahead += its > mine || (its == mine && j < i);
  }
  return ahead < n;
}

template <class T>
bool agrees(const nms_weight& w, const std::vector<T>& x, const T* sparse,
            const std::uint8_t* mask) {
  const T magnitude = static_cast<T>(static_cast<T>(~T{0}) >> 1);
  std::int64_t nonzeros = 0;
  for (std::int64_t o = 0; o < w.outer; ++o) {
    for (std::int64_t l = 0; l < w.length; ++l) {
      for (std::int64_t i = 0; i < w.inner; ++i) {
        const std::int64_t first = l - l % w.m, left = w.length - first;
        const int size = static_cast<int>(left < w.m ? left : w.m);
        const std::int64_t group = (o * w.length + first) * w.inner + i;
        const std::int64_t at = (o * w.length + l) * w.inner + i;
        const bool kept =
            expected_kept(x, group, w.inner, size, w.n, static_cast<int>(l - first));
        if (sparse[at] != (kept ? x[at] : T{0})) return false;
        if (mask && mask[at] != kept) return false;
        nonzeros += kept && (x[at] & magnitude);
      }
    }
  }
  return nonzeros == w.nonzeros;
}

template <class T>
T* copy_of(const std::vector<T>& x) {
  // malloc(0) may give no block at all; a block of one byte has its red zones.
  void* block = std::malloc(x.empty() ? 1 : x.size() * sizeof(T));
  if (!x.empty()) std::memcpy(block, x.data(), x.size() * sizeof(T));
  return static_cast<T*>(block);
}

template <class T>
bool try_one(std::int64_t outer, std::int64_t length, std::int64_t inner, int n, int m, int dtype,
             bool with_mask) {
  std::vector<T> x(static_cast<std::size_t>(outer * length * inner));
  // Few different values, so that ties are common; all of them finite.
  for (auto& value : x) value = static_cast<T>(random_bits() % 5 << 8);
  T* sparse = copy_of(x);
  T* dense = copy_of(x);
  T* grad = copy_of(std::vector<T>(x.size()));
  std::uint8_t* mask = copy_of(std::vector<std::uint8_t>(x.size()));
  nms_weight w{};
  const bool in_place = random_bits() % 2;
  w.dense = in_place ? sparse : dense;
  w.sparse = sparse;
  w.mask = with_mask ? mask : nullptr;
  w.outer = outer, w.length = length, w.inner = inner, w.n = n, w.m = m, w.dtype = dtype;
  bool good = nms_project(&w, 1) == NMS_OK && !w.bad && agrees(w, x, sparse, w.mask);
  const std::int64_t nonzeros = w.nonzeros;
  w.dense = dense;
  w.alpha = 0.5f;
  for (T* with : {static_cast<T*>(nullptr), grad}) {
    w.grad = with;
    good = good && nms_add_term(&w, 1) == NMS_OK && !w.bad && w.nonzeros == nonzeros;
  }
  good = good && (x.empty() || !std::memcmp(dense, x.data(), x.size() * sizeof(T)));
  for (void* block : {static_cast<void*>(sparse), static_cast<void*>(dense),
                      static_cast<void*>(grad), static_cast<void*>(mask)}) {
    std::free(block);
  }
  if (!good) {
    std::printf("%s: [%d, %d, %d] %d:%d dtype %d is wrong\n", nms_isa(), static_cast<int>(outer),
                static_cast<int>(length), static_cast<int>(inner), n, m, dtype);
  }
  return good;
}

bool try_all() {
  const std::int64_t inners[] = {0, 1, 2, 7, 8, 9, 16, 17, 33};
  const int patterns[][2] = {{1, 1},  {1, 2},  {2, 3},   {2, 4},   {3, 5},   {4, 8},   {7, 8},
                             {5, 12}, {8, 16}, {16, 32}, {16, 64}, {32, 64}, {33, 64}, {64, 64}};
  bool good = true;
  for (const auto inner : inners) {
    for (const auto& p : patterns) {
      for (const std::int64_t length : {std::int64_t{0}, std::int64_t{3}, std::int64_t{p[1]},
                                        std::int64_t{5 * p[1] + 3}}) {
        const std::int64_t outer = 1 + random_bits() % 5;
        const bool mask = random_bits() % 2;
        good &= try_one<std::uint32_t>(outer, length, inner, p[0], p[1], NMS_FLOAT32, mask);
        good &= try_one<std::uint16_t>(outer, length, inner, p[0], p[1], NMS_FLOAT16, mask);
        good &= try_one<std::uint16_t>(outer, length, inner, p[0], p[1], NMS_BFLOAT16, mask);
      }
    }
  }
  good &= try_one<std::uint32_t>(64, 512, 9, 2, 4, NMS_FLOAT32, false);
  return good & try_one<std::uint16_t>(64, 4608, 1, 2, 4, NMS_BFLOAT16, false);
}

}  // namespace

int main() {
  nms_set_parallel_for(backwards);
  bool good = true;
  int tried = 0;
  for (const char* isa : {"portable", "avx2", "avx512"}) {
    if (nms_choose(isa) != NMS_OK) continue;
    ++tried;
    good &= try_all();
    good &= try_products();
  }
  std::printf("%d instruction sets %s\n", tried, good ? "agree with the reference" : "FAILED");
  return good ? 0 : 1;
}
