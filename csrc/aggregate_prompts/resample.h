// Bilinear resize of rows on CPU, forwards and transposed, one axis at a time, from tables made once a call.
#pragma once

#include <cstdint>
#include <vector>

#include "aggregate_prompts/math.h"
#include "common/lanes.h"

namespace cpl {
namespace CPL_ISA {

// out[j] = sum over t of weight(t, j) * in[at(t, j)]: a few taps for each element, the same for every row.
template <typename A>
class Resample {
 public:
  // The resize itself (two taps), or its transpose (as many as the most popular source has).
  static Resample forwards(int64_t size, int64_t source) {
    std::vector<std::vector<Tap>> taps(static_cast<size_t>(size));
    for (int64_t o = 0; o < size; ++o) {
      const Neighbours<double, int64_t> n = neighbours<double>(o, size, source);
      taps[static_cast<size_t>(o)] = {{n.left, 1 - n.share}, {n.right, n.share}};
    }
    return Resample(taps);
  }
  static Resample transposed(int64_t size, int64_t source) {
    std::vector<std::vector<Tap>> taps(static_cast<size_t>(source));
    for (int64_t o = 0; o < size; ++o) {
      const Neighbours<double, int64_t> n = neighbours<double>(o, size, source);
      taps[static_cast<size_t>(n.left)].push_back({o, 1 - n.share});
      if (n.share != 0) taps[static_cast<size_t>(n.right)].push_back({o, n.share});
    }
    return Resample(taps);
  }

  int64_t size() const { return size_; }
  // Taps of element j, in ascending order of what they read.
  int64_t taps(int64_t j) const { return count_[static_cast<size_t>(j)]; }
  int64_t at(int64_t tap, int64_t j) const { return at_[place(tap, j)]; }
  A weight(int64_t tap, int64_t j) const { return weight_[place(tap, j)]; }

  // `in` must be readable up to kSlack elements behind its last, `out` writable up to a whole number of lanes.
  static constexpr int64_t kSlack = 2 * Lanes<A>::kCount;
  void row(const A* __restrict in, A* __restrict out) const {
#if defined(__AVX512F__)
    if constexpr (sizeof(A) == 4) {
      if (windows_) return permuted(in, out);
    }
#endif
    const A* weight = weight_.data();
    const int32_t* at = at_.data();
    for (int64_t j = 0; j < size_; ++j) out[j] = weight[j] * in[at[j]];
    for (int64_t t = 1; t < most_; ++t) {
      weight += padded_;
      at += padded_;
      for (int64_t j = 0; j < size_; ++j) out[j] += weight[j] * in[at[j]];
    }
  }

 private:
  struct Tap {
    int64_t at;
    double weight;
  };
  using Vector = typename Lanes<A>::Vector;

  explicit Resample(const std::vector<std::vector<Tap>>& taps)
      : size_(static_cast<int64_t>(taps.size())), padded_(Lanes<A>::round_up(size_)) {
    for (const std::vector<Tap>& own : taps) {
      count_.push_back(static_cast<int64_t>(own.size()));
      most_ = std::max(most_, count_.back());
    }
    // What fills the table up reads an element that is read anyway, times 0.
    at_.assign(static_cast<size_t>(most_ * padded_), 0);
    weight_.assign(static_cast<size_t>(most_ * padded_), A(0));
    for (int64_t j = 0; j < padded_; ++j) {
      const std::vector<Tap>& own = taps[static_cast<size_t>(std::min(j, size_ - 1))];
      for (int64_t t = 0; t < most_ && !own.empty(); ++t) {
        const bool real = t < static_cast<int64_t>(own.size());
        at_[place(t, j)] = static_cast<int32_t>(own[real ? static_cast<size_t>(t) : 0].at);
        weight_[place(t, j)] = real && j < size_ ? static_cast<A>(own[static_cast<size_t>(t)].weight) : A(0);
      }
    }
    // A block of lanes whose taps lie within two vectors is permuted from these, which is faster than a gather.
    for (int64_t block = 0; block < most_ * padded_; block += Lanes<A>::kCount) {
      const auto begin = at_.begin() + block;
      const auto range = std::minmax_element(begin, begin + Lanes<A>::kCount);
      base_.push_back(*range.first);
      windows_ = windows_ && *range.second - *range.first < 2 * Lanes<A>::kCount;
      for (int64_t i = 0; i < Lanes<A>::kCount; ++i) {
        within_.push_back(at_[static_cast<size_t>(block + i)] - base_.back());
      }
    }
  }

  size_t place(int64_t tap, int64_t j) const { return static_cast<size_t>(tap * padded_ + j); }

#if defined(__AVX512F__)
  void permuted(const A* __restrict in, A* __restrict out) const {
    typedef int32_t Mask __attribute__((vector_size(64)));
    for (int64_t j = 0; j < padded_; j += Lanes<A>::kCount) {
      Vector sum{};
      for (int64_t t = 0; t < most_; ++t) {
        const int64_t from = t * padded_ + j;
        const A* window = in + base_[static_cast<size_t>(from / Lanes<A>::kCount)];
        Mask mask;
        memcpy(&mask, within_.data() + from, sizeof mask);
        const Vector low = Lanes<A>::load(window), high = Lanes<A>::load(window + Lanes<A>::kCount);
        sum += Lanes<A>::load(weight_.data() + from) * __builtin_shuffle(low, high, mask);
      }
      memcpy(out + j, &sum, sizeof sum);
    }
  }
#endif

  int64_t size_;
  int64_t padded_;  // to a whole number of lanes
  int64_t most_ = 1;
  bool windows_ = true;
  std::vector<int64_t> count_;
  std::vector<int32_t> at_, within_;
  std::vector<int64_t> base_;
  std::vector<A> weight_;
};

}  // namespace CPL_ISA
}  // namespace cpl
