// The arithmetic of aggregate_prompts along one axis, shared by the CPU and the CUDA kernels.
//
//   centre = max((o + 1/2) * source / size - 1/2, 0),  left = floor(centre),  right = min(left + 1, source - 1)
//   y[o] = (1 - share) * x[left] + share * x[right],   share = centre - left       (align_corners=False)
//
// With centre = max((2 o + 1) source - size, 0) / (2 size) in whole numbers, left is exact, and share is rounded once.
#pragma once

#include <cstdint>

#include "common/macros.h"

namespace cpl {
namespace CPL_ISA {

// I: an integer that holds 2 * size * source.
template <typename A, typename I>
struct Neighbours {
  I left;
  I right;
  A share;  // of the right one
};

template <typename A, typename I>
CPL_HD Neighbours<A, I> neighbours(I out, I size, I source) {
  I centre = (2 * out + 1) * source - size;
  if (centre < 0) centre = 0;
  const I left = centre / (2 * size);
  const A share = static_cast<A>(centre - left * 2 * size) / static_cast<A>(2 * size);
  return {left, left + 1 < source ? left + 1 : source - 1, share};
}

// The first output that may read source s; those that do follow within touching(size, source).
template <typename I>
CPL_HD I first_touching(I s, I size, I source) {
  const I before = (2 * s - 1) * size - source;  // over 2 source: the last one centred at s - 1 or less
  return before < 0 ? 0 : before / (2 * source) + 1;
}
template <typename I>
CPL_HD I touching(I size, I source) {
  return (2 * size + source - 1) / source;
}

// How much of output `out` source s gives it, and gets back; 0 if it does not touch it.
template <typename A, typename I>
CPL_HD A weight_of(I s, I out, I size, I source) {
  const Neighbours<A, I> n = neighbours<A>(out, size, source);
  return (n.left == s ? 1 - n.share : A(0)) + (n.right == s ? n.share : A(0));
}

}  // namespace CPL_ISA
}  // namespace cpl
