// The order in which route_topk chooses, and what it weighs the chosen with.
//
// The order is that of the logits, ties to the lowest index; with m the largest logit,
//   weight_i = exp(l_{n_i} - m) / sum over n (topk: over the chosen n) of exp(l_n - m)
#pragma once

#include <cstdint>

#include "common/macros.h"

namespace cpl {
namespace CPL_ISA {

// Whether entry (value, index) comes before (other, other_index) in the order of choice.
template <typename A>
CPL_HD bool goes_before(A value, int64_t index, A other, int64_t other_index) {
  return value > other || (value == other && index < other_index);
}

}  // namespace CPL_ISA
}  // namespace cpl
