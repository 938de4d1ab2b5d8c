// The horizontal half of a resize on CPU, forwards or transposed: many rows by the same taps.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "aggregate_prompts/resample.h"

namespace cpl {
namespace CPL_ISA {

// Columns are done in blocks of one register, each for all rows. What a block reads is permuted from one register or
// two, by masks that stay in registers from row to row; where it lies too far apart, it is gathered.
template <typename A>
class Columns {
 public:
  explicit Columns(const Taps<A>& taps) : size_(taps.size()), most_(std::max<int64_t>(1, taps.most())) {
    // The last block overlaps the one before, so that only rows shorter than a block are written behind their end.
    for (int64_t j = 0; j < size_; j += kLanes) start_.push_back(std::min(j, std::max<int64_t>(0, size_ - kLanes)));
    if (kPermute && most_ <= kMostTaps) {
      reach_ = kOne;
      for (const int64_t start : start_) reach_ = std::max(reach_, reach_of(taps, start));
    }
    if (reach_ == kFar) {
      fill_gathered(taps);
    } else {
      fill_permuted(taps);
    }
  }

  // Whether rows cost about as much as adding them up, not several times that.
  bool fast() const { return reach_ != kFar; }

  // out[r * size + j] = sum over t of weight(t, j) * in[r * stride + at(t, j)]
  //
  // `in` must be readable, and `out` writable, up to kSlack elements behind the last row.
  static constexpr int64_t kSlack = 32;
  void rows(const A* in, int64_t stride, A* out, int64_t count) const {
    if constexpr (kPermute) {
      switch (reach_) {
        case kOne:
          return some_taps<kOne>(in, stride, out, count);
        case kTwo:
          return some_taps<kTwo>(in, stride, out, count);
        case kTwoEach:
          return some_taps<kTwoEach>(in, stride, out, count);
        case kFar:
          break;
      }
    }
    for (int64_t r = 0; r < count; ++r) gathered(in + r * stride, out + r * size_);
  }

 private:
// __builtin_shuffle with a mask known only when it runs is GCC's; Clang gathers.
#if defined(__clang__)
  static constexpr bool kPermute = false;
  static constexpr int64_t kLanes = 4;
#elif defined(__AVX512F__)
  static constexpr bool kPermute = sizeof(A) == 4;
  static constexpr int64_t kLanes = 16;
#elif defined(__AVX2__)
  static constexpr bool kPermute = sizeof(A) == 4;
  static constexpr int64_t kLanes = 8;
#else
  static constexpr bool kPermute = false;
  static constexpr int64_t kLanes = 4;
#endif
  static constexpr int64_t kMostTaps = 4;  // whose masks and weights fit in registers
  // All that the taps of a block read lies within a register, within two, within two for each tap, or farther apart.
  enum Reach { kOne, kTwo, kTwoEach, kFar };

  typedef A Vector __attribute__((vector_size(sizeof(A) * kLanes)));
  typedef int32_t Mask __attribute__((vector_size(4 * kLanes)));

  // What fills the tables up reads a number that is read anyway, times 0.
  static int64_t at(const Taps<A>& taps, int64_t t, int64_t j) {
    return taps.first(j) + std::min(t, std::max<int64_t>(0, taps.count(j) - 1));
  }
  static A weight(const Taps<A>& taps, int64_t t, int64_t j) { return t < taps.count(j) ? taps.weights(j)[t] : A(0); }

  struct Extent {
    int64_t first, last;
    bool within(int64_t length) const { return last - first < length; }
  };
  // Of what the block from column `start` reads by taps [t, t_end).
  Extent extent(const Taps<A>& taps, int64_t start, int64_t t, int64_t t_end) const {
    Extent found{INT64_MAX, 0};
    for (; t < t_end; ++t) {
      for (int64_t j = start; j < std::min(start + kLanes, size_); ++j) {
        if (taps.count(j) == 0) continue;
        found.first = std::min(found.first, at(taps, t, j));
        found.last = std::max(found.last, at(taps, t, j));
      }
    }
    if (found.first > found.last) found.first = 0;  // nothing
    return found;
  }
  Reach reach_of(const Taps<A>& taps, int64_t start) const {
    const Extent all = extent(taps, start, 0, most_);
    if (all.within(kLanes)) return kOne;
    if (all.within(2 * kLanes)) return kTwo;
    for (int64_t t = 0; t < most_; ++t) {
      if (!extent(taps, start, t, t + 1).within(2 * kLanes)) return kFar;
    }
    return kTwoEach;
  }

  void fill_permuted(const Taps<A>& taps) {
    for (const int64_t start : start_) {
      for (int64_t t = 0; t < most_; ++t) {
        const bool each = reach_ == kTwoEach;
        base_.push_back(extent(taps, start, each ? t : 0, each ? t + 1 : most_).first);
        for (int64_t j = start; j < start + kLanes; ++j) {
          const bool real = j < size_ && taps.count(j) > 0;
          from_.push_back(real ? static_cast<int32_t>(at(taps, t, j) - base_.back()) : 0);
          weight_.push_back(real ? weight(taps, t, j) : A(0));
        }
      }
    }
  }
  void fill_gathered(const Taps<A>& taps) {
    for (int64_t t = 0; t < most_; ++t) {
      for (int64_t j = 0; j < size_; ++j) {
        from_.push_back(static_cast<int32_t>(at(taps, t, j)));
        weight_.push_back(weight(taps, t, j));
      }
    }
  }

  template <Reach kReach>
  void some_taps(const A* in, int64_t stride, A* out, int64_t count) const {
    switch (most_) {
      case 1:
        return permuted<kReach, 1>(in, stride, out, count);
      case 2:
        return permuted<kReach, 2>(in, stride, out, count);
      case 3:
        return permuted<kReach, 3>(in, stride, out, count);
      default:
        return permuted<kReach, 4>(in, stride, out, count);
    }
  }

  template <Reach kReach, int kTaps>
  void permuted(const A* in, int64_t stride, A* out, int64_t count) const {
    for (size_t b = 0; b < start_.size(); ++b) {
      A* to = out + start_[b];
      const A* window[kTaps];
      Vector weight[kTaps];
      Mask mask[kTaps];
      for (size_t t = 0; t < kTaps; ++t) {
        const size_t row = b * kTaps + t;
        window[t] = in + base_[row];
        memcpy(&weight[t], weight_.data() + row * kLanes, sizeof weight[t]);
        memcpy(&mask[t], from_.data() + row * kLanes, sizeof mask[t]);
      }
      for (int64_t offset = 0; offset < count * stride; offset += stride, to += size_) {
        Vector low, high, sum{};
        for (int t = 0; t < kTaps; ++t) {
          if (t == 0 || kReach == kTwoEach) {
            memcpy(&low, window[t] + offset, sizeof low);
            if constexpr (kReach != kOne) memcpy(&high, window[t] + offset + kLanes, sizeof high);
          }
          if constexpr (kReach == kOne) {
            sum += weight[t] * __builtin_shuffle(low, mask[t]);
          } else {
            sum += weight[t] * __builtin_shuffle(low, high, mask[t]);
          }
        }
        memcpy(to, &sum, sizeof sum);
      }
    }
  }

  void gathered(const A* __restrict in, A* __restrict out) const {
    const A* weight = weight_.data();
    const int32_t* from = from_.data();
    for (int64_t j = 0; j < size_; ++j) out[j] = weight[j] * in[from[j]];
    for (int64_t t = 1; t < most_; ++t) {
      weight += size_;
      from += size_;
      for (int64_t j = 0; j < size_; ++j) out[j] += weight[j] * in[from[j]];
    }
  }

  int64_t size_, most_;  // most_: taps of an element
  Reach reach_ = kFar;
  std::vector<int64_t> start_;  // [blocks]: the first column of each
  std::vector<int64_t> base_;   // [blocks, most_]: where the registers begin that it reads
  std::vector<int32_t> from_;   // [blocks, most_, kLanes]: which numbers, from there; or [most_, size_], from the first
  std::vector<A> weight_;       // of these
};

}  // namespace CPL_ISA
}  // namespace cpl
