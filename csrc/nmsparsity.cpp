// The C interface: checks, the choice of instruction set, and the division into chunks.
#include "nmsparsity.h"

#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace {

constexpr std::int64_t chunk_size = 16384;  // elements, about; 64 KiB of fp32
constexpr std::int64_t chunks_a_thread = 2;

const Kernels* kernels = nullptr;
const char* isa_name = "";
nms_parallel_for parallel_for = nullptr;

#if defined(NMS_X86)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

[[maybe_unused]] bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

struct Isa {
  const char* name;
  const Kernels* kernels;
  bool present;
};

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

std::int64_t elements(const nms_weight& weight) {
  return weight.outer * weight.length * weight.inner;
}

// What `begin` and `end` of a kernel count, and how many of them a chunk has: independent of the
// number of threads, so that results are.
struct Project {
  static auto kernel() { return kernels->project; }
  static std::int64_t units(const nms_weight& weight) {
    return elements(weight) ? weight.outer * divide_up(weight.length, weight.m) : 0;
  }
  static std::int64_t chunk(const nms_weight& weight) {
    const std::int64_t unit = weight.inner > 1 ? weight.m * weight.inner : weight.m;
    // A multiple of what the widest vectors take at a time.
    return divide_up(divide_up(chunk_size, unit), 64) * 64;
  }
};

struct AddTerm {
  static auto kernel() { return kernels->add_term; }
  static std::int64_t units(const nms_weight& weight) { return elements(weight); }
  static std::int64_t chunk(const nms_weight&) { return chunk_size; }
};

struct Job {
  nms_weight* weights;
  std::int64_t count;
};

template <class Work>
void run_chunks(std::int64_t begin, std::int64_t end, void* context) {
  const Job& job = *static_cast<const Job*>(context);
  for (std::int64_t w = 0; w < job.count && begin < end; ++w) {
    nms_weight& weight = job.weights[w];
    const std::int64_t units = Work::units(weight), chunk = Work::chunk(weight);
    const std::int64_t last = weight.first_chunk + divide_up(units, chunk);
    for (; begin < end && begin < last; ++begin) {
      const std::int64_t from = (begin - weight.first_chunk) * chunk;
      Work::kernel()(weight, from, from + chunk < units ? from + chunk : units);
    }
  }
}

bool is_valid(const nms_weight& weight) {
  return weight.n >= 1 && weight.n <= weight.m && weight.m <= 64 && weight.outer >= 0 &&
         weight.length >= 0 && weight.inner >= 0 && weight.dtype >= NMS_FLOAT32 &&
         weight.dtype <= NMS_BFLOAT16;
}

template <class Work>
std::int32_t run(nms_weight* weights, std::int64_t count) {
  if (!kernels) nms_choose("");
  std::int64_t chunks = 0;
  for (std::int64_t w = 0; w < count; ++w) {
    if (!is_valid(weights[w])) return NMS_BAD_WEIGHT;
    weights[w].first_chunk = chunks;
    weights[w].nonzeros = weights[w].bad = 0;
    chunks += divide_up(Work::units(weights[w]), Work::chunk(weights[w]));
  }
  Job job{weights, count};
  if (parallel_for) {
    return parallel_for(0, chunks, chunks_a_thread, run_chunks<Work>, &job) ? NMS_POOL_FAILED
                                                                            : NMS_OK;
  }
  run_chunks<Work>(0, chunks, &job);
  return NMS_OK;
}

// A product as a grid of independent tasks: tiles of pixels, shares of the rows. No output depends
// on how many there are.
struct Grid {
  const nms_product& p;
  std::int64_t pixels, tile, tiles, blocks, share, shares;

  explicit Grid(const nms_product& product)
      : p(product), pixels(p.images * p.out_height * p.out_width),
        tile(p.vectors * (p.mode == NMS_TOKENS ? p.turns : kernels->lanes)),
        tiles(divide_up(pixels, tile)), blocks(divide_up(p.rows, kernels->lanes)) {
    // Even tiles: 13 vectors are 7 and 6, not 8 and 5.
    const std::int64_t unit = p.mode == NMS_TOKENS ? 1 : kernels->lanes;
    if (tiles) tile = divide_up(divide_up(pixels, unit), tiles) * unit;
    // Few tiles are shared between threads by rows, too; every share gathers the inputs anew.
    const std::int64_t wanted = p.threads > 1 ? 4 * p.threads : 1, have = p.groups * tiles;
    share = divide_up(blocks, have && have < wanted ? divide_up(wanted, have) : 1);
    shares = divide_up(blocks, share);
  }

  std::int64_t size() const { return p.groups * tiles * shares; }
};

// Whether the order of the work fits the layer.
bool can_follow(const nms_product& p) {
  if (p.vectors < 1 || p.vectors > 8 || p.depth < 1 || p.windows * p.slots % 8) return false;
  if (p.depth * p.slots % 8) return false;
  return p.mode == NMS_COLUMNS || (p.turns >= 1 && p.turns <= 16);
}

void run_tasks(std::int64_t begin, std::int64_t end, void* context) {
  const Grid& grid = *static_cast<const Grid*>(context);
  for (; begin < end; ++begin) {
    const std::int64_t first = begin % grid.shares * grid.share;
    const std::int64_t last = first + grid.share < grid.blocks ? first + grid.share : grid.blocks;
    const std::int64_t pixel = begin / grid.shares % grid.tiles * grid.tile;
    const std::int64_t left = grid.pixels - pixel;
    kernels->multiply(grid.p, begin / grid.shares / grid.tiles, pixel,
                      left < grid.tile ? left : grid.tile, first, last);
  }
}

}  // namespace

std::int32_t nms_multiply(const nms_product* product) {
  if (!kernels) nms_choose("");
  if (!can_follow(*product)) return NMS_BAD_WEIGHT;
  Grid grid(*product);
  if (!grid.pixels || !product->rows) return NMS_OK;
  if (parallel_for && grid.size() > 1) {
    return parallel_for(0, grid.size(), 1, run_tasks, &grid) ? NMS_POOL_FAILED : NMS_OK;
  }
  run_tasks(0, grid.size(), &grid);
  return NMS_OK;
}

std::int64_t nms_lanes(void) { return kernels->lanes; }
std::int64_t nms_product_abi(void) { return sizeof(nms_product); }

std::int32_t nms_project(nms_weight* weights, std::int64_t count) {
  return run<Project>(weights, count);
}

std::int32_t nms_add_term(nms_weight* weights, std::int64_t count) {
  return run<AddTerm>(weights, count);
}

std::int32_t nms_choose(const char* name) {
  const Isa all[] = {
#if defined(NMS_HAS_AVX512)
      {"avx512", &kernels_avx512, has_avx512()},
#endif
#if defined(NMS_HAS_AVX2)
      {"avx2", &kernels_avx2, has_avx2()},
#endif
      {"portable", &kernels_portable, true},
  };
  for (const Isa& isa : all) {
    if (*name ? std::strcmp(name, isa.name) != 0 : !isa.present) continue;
    if (!isa.present) return NMS_ISA_MISSING;
    kernels = isa.kernels;
    isa_name = isa.name;
    return NMS_OK;
  }
  return NMS_UNKNOWN_ISA;
}

const char* nms_isa(void) { return isa_name; }

void nms_set_parallel_for(nms_parallel_for function) { parallel_for = function; }

std::int64_t nms_abi(void) { return sizeof(nms_weight); }
