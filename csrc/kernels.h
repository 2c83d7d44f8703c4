// What each instruction set provides: the same functions, compiled from isa.cpp.
#pragma once

#include "nmsparsity.h"
#include "product.h"

struct Kernels {
  // Ranges of units (one group, all its inner elements) for project, of elements otherwise.
  void (*project)(nms_weight&, int64_t begin, int64_t end);
  void (*add_term)(nms_weight&, int64_t begin, int64_t end);
  // Blocks of rows [from, to) for `count` output pixels from `begin` on.
  void (*multiply)(const nms_product&, int64_t group, int64_t begin, int64_t count, int64_t from,
                   int64_t to);
  int64_t lanes;  // rows of a block
};

extern const Kernels kernels_portable;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
