// What each instruction set provides: the same functions, compiled from isa.cpp.
#pragma once

#include "nmsparsity.h"

struct Kernels {
  // Ranges of units (one group, all its inner elements) for project, of elements otherwise.
  void (*project)(nms_weight&, int64_t begin, int64_t end);
  void (*add_term)(nms_weight&, int64_t begin, int64_t end);
};

extern const Kernels kernels_portable;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
