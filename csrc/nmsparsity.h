// The C interface of the native mask kernels: what nmsparsity/native/ loads with ctypes.
//
// A weight is a contiguous [outer, length, inner] block: element (o, l, i) is at
// (o * length + l) * inner + i. Groups are m consecutive l; a last short one keeps min(n, len).
#ifndef NMSPARSITY_H
#define NMSPARSITY_H

#include <stdint.h>

#if defined(_WIN32)
#define NMS_API __declspec(dllexport)
#else
#define NMS_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum nms_dtype { NMS_FLOAT32 = 0, NMS_FLOAT16 = 1, NMS_BFLOAT16 = 2 };
enum nms_status {
  NMS_OK = 0,
  NMS_BAD_WEIGHT = -1,
  NMS_UNKNOWN_ISA = -2,
  NMS_ISA_MISSING = -3,
  NMS_POOL_FAILED = -4
};

// Every entry point takes an array of these and handles all of them as one parallel job.
typedef struct nms_weight {
  // in; memory of `outer * length * inner` elements each, or null where optional.
  const void* dense;   // the dense weight; project: may be `sparse` itself
  void* sparse;        // project writes it, add_term reads it
  uint8_t* mask;       // project: optional, 1 where kept
  void* grad;          // add_term: optional, grad += alpha * (dense - sparse)
  int64_t outer, length, inner;
  int32_t n, m;        // 1 <= n <= m <= 64
  int32_t dtype;       // nms_dtype, the same for every pointer but mask
  int32_t is_signed;   // project: rank by the value itself, not by its magnitude
  float alpha;         // add_term
  // out
  int32_t bad;         // project: a NaN or infinite element; add_term: neither 0 nor dense's
                       // element
  int64_t nonzeros;    // in sparse
  // the library's own
  int64_t first_chunk;
} nms_weight;

// torch_parallel_for of libtorch_cpu: the pool that torch computes with.
typedef void (*nms_range)(int64_t begin, int64_t end, void* context);
typedef int32_t (*nms_parallel_for)(
    int64_t begin, int64_t end, int64_t grain, nms_range body, void* context);

NMS_API int32_t nms_project(nms_weight* weights, int64_t count);
NMS_API int32_t nms_add_term(nms_weight* weights, int64_t count);

// "portable", "avx2", "avx512", or "" for the best that this machine has.
NMS_API int32_t nms_choose(const char* isa);
NMS_API const char* nms_isa(void);
// Null: one thread.
NMS_API void nms_set_parallel_for(nms_parallel_for parallel_for);
// sizeof(nms_weight), so that a stale library is noticed.
NMS_API int64_t nms_abi(void);

#ifdef __cplusplus
}
#endif
#endif
