// A packed weight times activations: a share of the rows and of the output pixels.
#pragma once

#include "columns.h"
#include "tokens.h"

namespace {

// Blocks of rows [from, to) for `count` output pixels from `begin` on.
void multiply(const nms_product& p, std::int64_t group, std::int64_t begin, std::int64_t count,
              std::int64_t from, std::int64_t to) {
  if (p.mode == NMS_TOKENS) return Tokens(p, group, begin, count).run(from, to);
  switch ((count + lanes - 1) / lanes) {
    case 1: return Columns<1>(p, group, begin, count).run(from, to);
    case 2: return Columns<2>(p, group, begin, count).run(from, to);
    case 3: return Columns<3>(p, group, begin, count).run(from, to);
    case 4: return Columns<4>(p, group, begin, count).run(from, to);
    case 5: return Columns<5>(p, group, begin, count).run(from, to);
    case 6: return Columns<6>(p, group, begin, count).run(from, to);
    case 7: return Columns<7>(p, group, begin, count).run(from, to);
    default: return Columns<8>(p, group, begin, count).run(from, to);
  }
}

}  // namespace
