// dwconv on CPU. Compiled once per instruction set.
//
// A work item is one channel of one image, streamed row by row through a ring of three zero-padded rows. The backward
// reads x and dy once, for dx and the weight's gradient together. Each item leaves its own sums, which are added over
// the batch in order.
#include <type_traits>

#include "common/parallel.h"
#include "common/ring.h"
#include "dwconv/op.h"

namespace cpl {
namespace CPL_ISA {
namespace {

constexpr int64_t kSums = kTaps + 1;  // of an item: nine taps and the bias

// Brings row `index` of a plane into its ring, or zeros below the last.
template <typename T, typename A>
inline void advance(const ImageView& x, const DwconvSize& size, int64_t batch, int64_t channel, int64_t index,
                    const Ring<A>& ring) {
  if (index < size.height) {
    ring.fill(index, x.at<const T>(batch, channel, index * size.width));
  } else {
    ring.clear(index);
  }
}

// A row of a result, rounded from `wide` unless it can be written there at once.
template <bool kFlip, typename T, typename A>
inline void write_row(const Ring<A>& rows, int64_t index, const A* taps, A bias, T* target, A* wide, int64_t width) {
  if constexpr (std::is_same_v<T, A>) {
    convolve_row<kFlip>(rows, index, taps, bias, target, width);
  } else {
    convolve_row<kFlip>(rows, index, taps, bias, wide, width);
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) store(target + j, wide[j]);
  }
}

template <typename T, typename A>
void forward_plane(const DwconvForward& args, int64_t batch, int64_t channel, A* memory) {
  const DwconvSize& size = args.size;
  const Ring<A> x(memory, size.width);
  A* const wide = memory + Ring<A>::size(size.width);
  const A* const taps = static_cast<const A*>(args.weight) + kTaps * channel;
  const A bias = args.bias != nullptr ? static_cast<const A*>(args.bias)[channel] : A(0);
  advance<T>(args.x, size, batch, channel, 0, x);
  for (int64_t i = 0; i < size.height; ++i) {
    advance<T>(args.x, size, batch, channel, i + 1, x);
    write_row<false>(x, i, taps, bias, args.y.at<T>(batch, channel, i * size.width), wide, size.width);
  }
}

template <typename T, typename A>
void backward_plane(const DwconvBackward& args, int64_t batch, int64_t channel, A* memory, double* sums) {
  const DwconvSize& size = args.size;
  const int64_t ring = Ring<A>::size(size.width);
  const Ring<A> x(memory, size.width), dy(memory + ring, size.width);
  A* const wide = memory + 2 * ring;
  const A* const taps = static_cast<const A*>(args.weight) + kTaps * channel;
  TapSums<A> tap_sums;
  advance<T>(args.x, size, batch, channel, 0, x);
  advance<T>(args.dy, size, batch, channel, 0, dy);
  for (int64_t i = 0; i < size.height; ++i) {
    advance<T>(args.x, size, batch, channel, i + 1, x);
    advance<T>(args.dy, size, batch, channel, i + 1, dy);
    tap_sums.add(x, i, dy.row(i), size.width, sums);
    write_row<true>(dy, i, taps, A(0), args.dx.at<T>(batch, channel, i * size.width), wide, size.width);
  }
  tap_sums.flush(sums);
}

}  // namespace

void dwconv_forward(const DwconvForward& args, int threads) {
  dispatch(args.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    const int64_t channels = args.size.channels, elements = Ring<A>::size(args.size.width) + args.size.width;
    parallel_for(args.size.batch * channels, threads, sizeof(A) * static_cast<size_t>(elements),
                 [&](int64_t i, char* scratch) {
                   forward_plane<T>(args, i / channels, i % channels, reinterpret_cast<A*>(scratch));
                 });
  });
}

void dwconv_backward(const DwconvBackward& args, int threads) {
  const int64_t channels = args.size.channels, items = args.size.batch * channels;
  const Scratch memory(sizeof(double) * static_cast<size_t>(items * kSums));
  double* const sums = reinterpret_cast<double*>(memory.data());
  for (int64_t i = 0; i < items * kSums; ++i) sums[i] = 0;
  dispatch(args.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    const int64_t elements = 2 * Ring<A>::size(args.size.width) + args.size.width;
    parallel_for(items, threads, sizeof(A) * static_cast<size_t>(elements), [&](int64_t i, char* scratch) {
      backward_plane<T>(args, i / channels, i % channels, reinterpret_cast<A*>(scratch), sums + i * kSums);
    });
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t k = 0; k < kSums; ++k) {
        double total = 0;
        for (int64_t b = 0; b < args.size.batch; ++b) total += sums[(b * channels + c) * kSums + k];
        A* const target = k == kTaps ? static_cast<A*>(args.dbias) + c : static_cast<A*>(args.dweight) + c * kTaps + k;
        *target = static_cast<A>(total);
      }
    }
  });
}

}  // namespace CPL_ISA
}  // namespace cpl
