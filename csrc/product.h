// The C interface of the inference kernels: a packed N:M weight times dense activations.
//
// Every layer is a convolution to it: a linear layer is one of 1x1 over an image of 1 x tokens,
// with the channels last. The weight lies as nmsparsity/kernels/native.py lays it out: output rows
// in blocks of `lanes`, the inputs of a row (tap by tap, channel by channel) in windows of 16; every
// row keeps `slots` entries of every window, a value and a 4-bit position each.
#ifndef NMSPARSITY_PRODUCT_H
#define NMSPARSITY_PRODUCT_H

#include "nmsparsity.h"

#ifdef __cplusplus
extern "C" {
#endif

enum nms_activation { NMS_NONE = 0, NMS_RELU, NMS_GELU, NMS_GELU_TANH, NMS_SILU };
enum nms_mode { NMS_COLUMNS = 0, NMS_TOKENS = 1 };

typedef struct nms_product {
  const float* values;     // [groups, blocks, windows, slots, lanes]
  const uint32_t* places;  // [groups, blocks, windows * slots / 8, lanes], 8 positions each
  const float* x;
  const float* bias;       // [groups * rows], or null
  const float* residual;   // like y, or null
  float* y;
  int64_t groups, rows, channels;   // rows and channels of one group
  int64_t images, height, width, out_height, out_width;
  // From one image, channel and pixel to the next, in elements; one of the last two is 1.
  int64_t x_image, x_channel, x_pixel, y_image, y_channel, y_pixel;
  int32_t kernel_height, kernel_width, stride_y, stride_x, pad_y, pad_x, dilate_y, dilate_x;
  int32_t windows, slots;  // windows are a multiple of what fills whole words
  int32_t activation;      // nms_activation
  int32_t mode;            // nms_mode
  int32_t vectors;         // columns: vectors of a tile, 1 to 8; tokens: pixels at a time, 1 to 8
  int32_t depth;           // windows of a tile
  int32_t turns;           // tokens: tiles that share weights, 1 to 16
  int32_t threads;         // that will share the work
} nms_product;

NMS_API int32_t nms_multiply(const nms_product* product);
// Rows of a block in `values`, under the instruction set in use.
NMS_API int64_t nms_lanes(void);
NMS_API int64_t nms_product_abi(void);

#ifdef __cplusplus
}
#endif
#endif
