// What route_topk and route_negatives on CPU do with a row of logits.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "common/dtype.h"
#include "common/normal.h"
#include "common/parallel.h"

namespace cpl {
namespace CPL_ISA {

constexpr int64_t kRouteElements = 16384;  // logits of a work item: a thread is not worth starting for less

inline int64_t route_rows(int64_t prompts) { return prompts < kRouteElements ? kRouteElements / prompts : 1; }

// body(b, scratch) for every row, in work items of fixed size.
template <typename Body>
void each_row(int64_t batch, int64_t prompts, int threads, size_t scratch_bytes, const Body& body) {
  const int64_t rows = route_rows(prompts);
  parallel_for((batch + rows - 1) / rows, threads, scratch_bytes, [&](int64_t item, char* scratch) {
    const int64_t end = (item + 1) * rows < batch ? (item + 1) * rows : batch;
    for (int64_t b = item * rows; b < end; ++b) body(b, scratch);
  });
}

// The row in the arithmetic type; false if it has no softmax.
template <typename T, typename A>
bool read_row(const T* logits, int64_t count, A* row) {
  A highest = -std::numeric_limits<A>::infinity();
  bool valid = true;
  for (int64_t n = 0; n < count; ++n) {
    row[n] = load(logits + n);
    valid = valid && row[n] == row[n];
    highest = row[n] > highest ? row[n] : highest;
  }
  return valid && highest - highest == 0;  // neither infinity
}

inline float exp_row(float x) { return exp_negative(x); }
inline double exp_row(double x) { return std::exp(x); }

// exp(row - its largest), which must not be -inf throughout (NaN then); gives the sum.
template <typename A>
A exponentials(const A* row, int64_t count, A* out) {
  A highest = row[0];
  for (int64_t n = 1; n < count; ++n) highest = row[n] > highest ? row[n] : highest;
  const bool none = highest == -std::numeric_limits<A>::infinity();
#pragma omp simd
  for (int64_t n = 0; n < count; ++n) out[n] = exp_row(row[n] - highest);
  A sum = none ? std::numeric_limits<A>::quiet_NaN() : A(0);
  for (int64_t n = 0; n < count; ++n) sum += out[n];
  return sum;
}

// Softmax weights of `row` at the k indices, over all or over those k. `scratch` has room for count values.
template <typename A>
void weigh(const A* row, int64_t count, const int64_t* indices, int64_t chosen, bool renormalize, A* scratch, A* out) {
  if (renormalize) {
    for (int64_t i = 0; i < chosen; ++i) scratch[i] = row[indices[i]];
    const A sum = exponentials(scratch, chosen, scratch);
    for (int64_t i = 0; i < chosen; ++i) out[i] = scratch[i] / sum;
  } else {
    const A sum = exponentials(row, count, scratch);
    for (int64_t i = 0; i < chosen; ++i) out[i] = scratch[indices[i]] / sum;
  }
}

// The k largest in descending order, ties to the lowest index. `best` has room for k values.
template <typename A>
void choose(const A* row, int64_t count, int64_t chosen, A* best, int64_t* indices) {
  int64_t held = 0;
  for (int64_t n = 0; n < count; ++n) {
    if (held == chosen && !(row[n] > best[held - 1])) continue;
    int64_t at = held < chosen ? held++ : held - 1;
    for (; at > 0 && row[n] > best[at - 1]; --at) {
      best[at] = best[at - 1];
      indices[at] = indices[at - 1];
    }
    best[at] = row[n];
    indices[at] = n;
  }
}

}  // namespace CPL_ISA
}  // namespace cpl
