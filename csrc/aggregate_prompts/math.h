// The arithmetic of aggregate_prompts along one axis, shared by the CPU and the CUDA kernels.
//
//   centre = max((o + 1/2) * source / size - 1/2, 0),  left = floor(centre),  right = min(left + 1, source - 1)
//   y[o] = (1 - share) * x[left] + share * x[right],   share = centre - left       (align_corners=False)
//
// In fp64 throughout: in fp32 a centre that should be a whole number may fall below it.
#pragma once

#include <cstdint>

#include "common/macros.h"

namespace cpl {
namespace CPL_ISA {

struct Neighbours {
  int64_t left;
  int64_t right;
  double share;  // of the right one
};

CPL_HD Neighbours neighbours(int64_t out, int64_t size, int64_t source) {
  if (size == source) return {out, out, 0.0};
  const double scale = static_cast<double>(source) / static_cast<double>(size);
  double centre = (static_cast<double>(out) + 0.5) * scale - 0.5;
  if (centre < 0) centre = 0;
  int64_t left = static_cast<int64_t>(centre);
  if (left > source - 1) left = source - 1;
  return {left, left + 1 < source ? left + 1 : source - 1, centre - static_cast<double>(left)};
}

}  // namespace CPL_ISA
}  // namespace cpl
