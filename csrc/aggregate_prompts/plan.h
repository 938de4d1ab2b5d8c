// What both passes of aggregate_prompts on CPU want to know of a call before they touch a prompt: which
// prompts are used, by whom, in which order the images are walked.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "aggregate_prompts/op.h"

namespace cpl {
namespace CPL_ISA {

struct Pair {
  int64_t image;
  int64_t place;  // b * k + i
};

struct Plan {
  std::vector<double> weights;      // [B * k]
  std::vector<int64_t> slot;        // [B * k]: which of the used prompts
  std::vector<int64_t> used;        // the prompts that occur, ascending
  std::vector<int64_t> order;       // the images, those with the same first prompt together
  std::vector<int64_t> first_pair;  // [used + 1], into pairs
  std::vector<Pair> pairs;          // by prompt, within it by place
};

inline Plan make_plan(const void* weights, DType weights_dtype, const int64_t* indices, const AggregateSize& size) {
  Plan plan;
  const int64_t places = size.batch * size.chosen;
  std::vector<int64_t> count(static_cast<size_t>(size.prompts), 0);
  for (int64_t p = 0; p < places; ++p) {
    if (indices[p] < 0 || indices[p] >= size.prompts) {
      throw std::invalid_argument("indices must be from 0 to N-1 = " + std::to_string(size.prompts - 1) + ", got " +
                                  std::to_string(indices[p]));
    }
    ++count[static_cast<size_t>(indices[p])];
  }
  plan.weights.resize(static_cast<size_t>(places));
  dispatch(weights_dtype, [&](auto* element) {
    const auto* source = static_cast<const std::remove_pointer_t<decltype(element)>*>(weights);
    for (int64_t p = 0; p < places; ++p) plan.weights[static_cast<size_t>(p)] = static_cast<double>(load(source + p));
  });
  std::vector<int64_t> slot_of(static_cast<size_t>(size.prompts), 0);
  plan.first_pair.push_back(0);
  for (int64_t n = 0; n < size.prompts; ++n) {
    if (count[static_cast<size_t>(n)] == 0) continue;
    slot_of[static_cast<size_t>(n)] = static_cast<int64_t>(plan.used.size());
    plan.used.push_back(n);
    plan.first_pair.push_back(plan.first_pair.back() + count[static_cast<size_t>(n)]);
  }
  plan.slot.resize(static_cast<size_t>(places));
  plan.pairs.resize(static_cast<size_t>(places));
  std::vector<int64_t> next(plan.first_pair);
  for (int64_t p = 0; p < places; ++p) {
    const int64_t slot = slot_of[static_cast<size_t>(indices[p])];
    plan.slot[static_cast<size_t>(p)] = slot;
    plan.pairs[static_cast<size_t>(next[static_cast<size_t>(slot)]++)] = {p / size.chosen, p};
  }
  plan.order.resize(static_cast<size_t>(size.batch));
  std::iota(plan.order.begin(), plan.order.end(), 0);
  if (size.chosen > 0) {
    std::stable_sort(plan.order.begin(), plan.order.end(),
                     [&](int64_t a, int64_t b) { return indices[a * size.chosen] < indices[b * size.chosen]; });
  }
  return plan;
}

// Calls f(n, slot) for every prompt that is used, g(n) for the others.
template <typename Used, typename Unused>
inline void each_prompt(const Plan& plan, int64_t prompts, const Used& f, const Unused& g) {
  int64_t slot = 0;
  for (int64_t n = 0; n < prompts; ++n) {
    if (slot < static_cast<int64_t>(plan.used.size()) && plan.used[static_cast<size_t>(slot)] == n) {
      f(n, slot++);
    } else {
      g(n);
    }
  }
}

}  // namespace CPL_ISA
}  // namespace cpl
