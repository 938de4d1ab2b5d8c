// Bilinear resize of rows on CPU, forwards and transposed, one axis at a time, from tables made once a call.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "aggregate_prompts/math.h"

namespace cpl {
namespace CPL_ISA {

// out[j] = sum over t < count(j) of weights(j)[t] * in[first(j) + t]
template <typename A>
class Taps {
 public:
  // The resize itself: two taps, or one where the element lies on a number or beyond the last.
  static Taps forwards(int64_t size, int64_t source) {
    Taps taps(size, 2);
    each(size, source, [&](int64_t out, int64_t in, double weight) { taps.add(out, in, weight); });
    return taps;
  }
  // Its transpose: as many taps as outputs touch the source, none where that is passed over.
  static Taps transposed(int64_t size, int64_t source) {
    Taps taps(source, touching(size, source));
    each(size, source, [&](int64_t out, int64_t in, double weight) { taps.add(in, out, weight); });
    return taps;
  }

  int64_t size() const { return static_cast<int64_t>(first_.size()); }
  int64_t most() const { return *std::max_element(count_.begin(), count_.end()); }
  int64_t first(int64_t j) const { return first_[static_cast<size_t>(j)]; }
  int64_t count(int64_t j) const { return count_[static_cast<size_t>(j)]; }
  const A* weights(int64_t j) const { return weight_.data() + j * room_; }

 private:
  Taps(int64_t size, int64_t room)
      : room_(room),
        first_(static_cast<size_t>(size), 0),
        count_(static_cast<size_t>(size), 0),
        weight_(static_cast<size_t>(size * room), A(0)) {}
  template <typename Add>
  static void each(int64_t size, int64_t source, const Add& add) {
    for (int64_t o = 0; o < size; ++o) {
      const Neighbours<double, int64_t> n = neighbours<double>(o, size, source);
      const bool one = n.share == 0 || n.left == n.right;
      add(o, n.left, one ? 1 : 1 - n.share);
      if (!one) add(o, n.right, n.share);
    }
  }
  void add(int64_t j, int64_t at, double weight) {
    int64_t& count = count_[static_cast<size_t>(j)];
    if (count == 0) first_[static_cast<size_t>(j)] = at;
    weight_[static_cast<size_t>(j * room_ + count++)] = static_cast<A>(weight);
  }

  int64_t room_;  // for the taps of an element; what is not taken has weight 0
  std::vector<int64_t> first_, count_;
  std::vector<A> weight_;
};

}  // namespace CPL_ISA
}  // namespace cpl
