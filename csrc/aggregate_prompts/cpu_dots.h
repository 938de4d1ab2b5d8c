// The gradient of the weights of aggregate_prompts on CPU: sums over all elements, taken in a fixed order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "aggregate_prompts/op.h"
#include "common/dtype.h"
#include "common/parallel.h"

namespace cpl {
namespace CPL_ISA {
namespace {

constexpr int64_t kMaxChunks = 64;  // rows of partial sums; fixed, so is their order

// Partial sums of dweights, [chunks, B * k] in fp64; each chunk adds to its own row.
class Dots {
 public:
  Dots(int64_t chunks, const AggregateBackward& args)
      : places_(args.size.batch * args.size.chosen),
        chunks_(chunks),
        wanted_(args.dweights != nullptr),
        memory_(wanted_ ? sizeof(double) * static_cast<size_t>(chunks * places_) : 0) {
    if (wanted_) std::fill_n(data(), chunks * places_, 0.0);
  }
  double* at(int64_t chunk, int64_t place) const { return wanted_ ? data() + chunk * places_ + place : nullptr; }
  void finish(const AggregateBackward& args) const {
    if (!wanted_) return;
    dispatch(args.weights_dtype, [&](auto* element) {
      using W = std::remove_pointer_t<decltype(element)>;
      for (int64_t p = 0; p < places_; ++p) {
        double sum = 0;
        for (int64_t c = 0; c < chunks_; ++c) sum += data()[c * places_ + p];
        store(static_cast<W*>(args.dweights) + p, static_cast<typename Arithmetic<W>::type>(sum));
      }
    });
  }

 private:
  double* data() const { return reinterpret_cast<double*>(memory_.data()); }
  int64_t places_, chunks_;
  bool wanted_;
  Scratch memory_;
};

}  // namespace
}  // namespace CPL_ISA
}  // namespace cpl
