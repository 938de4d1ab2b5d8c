// The arithmetic of route_topk on one row of logits, shared by the CPU and the CUDA kernels.
//
// The order is that of the logits, ties to the lowest index; with m the largest logit,
//   weight_i = exp(l_{n_i} - m) / sum over n (topk: over the chosen n) of exp(l_n - m)
#pragma once

#include <cmath>
#include <cstdint>

#include "common/macros.h"

namespace cpl {
namespace CPL_ISA {

// Whether entry (value, index) comes before (other, other_index) in the order of choice.
template <typename A>
CPL_HD bool goes_before(A value, int64_t index, A other, int64_t other_index) {
  return value > other || (value == other && index < other_index);
}

// The entry that comes next after (last, last_index) in the order of choice, or the first for last_index < 0;
// -1 if there is none (a row with NaN in it).
template <typename Value>
CPL_HD int64_t next_choice(const Value& value, int64_t count, int64_t last_index) {
  int64_t best = -1;
  for (int64_t n = 0; n < count; ++n) {
    if (last_index >= 0 && !goes_before(value(last_index), last_index, value(n), n)) continue;
    if (best < 0 ? value(n) == value(n) : goes_before(value(n), n, value(best), best)) best = n;
  }
  return best;
}

}  // namespace CPL_ISA
}  // namespace cpl
