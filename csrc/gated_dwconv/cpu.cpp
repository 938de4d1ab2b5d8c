// gated_dwconv on CPU. Compiled once per instruction set.
//
// A work item is one channel of one image: its two planes are streamed row by row through a ring of three
// zero-padded rows, so that the convolution of 2 C channels never exists. The backward convolves again from
// x (and so has y at hand, for who wants it), keeps a ring of the gradient's rows behind it, and sums the
// weight gradient on the way: x and dy are read once. Each item leaves its own sums, which are added over the
// batch in order.
#include <type_traits>

#include "common/parallel.h"
#include "gated_dwconv/math.h"
#include "gated_dwconv/op.h"
#include "gated_dwconv/ring.h"

namespace cpl {
namespace CPL_ISA {
namespace {

constexpr int64_t kSums = 2 * (kTaps + 1);  // of an item: nine taps and the bias, for both planes

template <typename A>
struct Taps {
  const A* a;
  const A* g;
  A bias_a;
  A bias_g;
};

template <typename A>
Taps<A> taps_of(const void* weight, const void* bias, int64_t channel, int64_t channels) {
  const A* w = static_cast<const A*>(weight);
  const A* b = static_cast<const A*>(bias);
  return {w + kTaps * channel, w + kTaps * (channel + channels), b != nullptr ? b[channel] : A(0),
          b != nullptr ? b[channel + channels] : A(0)};
}

// Brings row `index` of both planes into the rings, or zeros below the last.
template <typename T, typename A>
inline void advance(const ImageView& x, const GatedDwconvSize& size, int64_t batch, int64_t channel, int64_t index,
                    const Ring<A>& a, const Ring<A>& g) {
  if (index < size.height) {
    a.fill(index, x.at<const T>(batch, channel, index * size.width));
    g.fill(index, x.at<const T>(batch, channel + size.channels, index * size.width));
  } else {
    a.clear(index);
    g.clear(index);
  }
}

template <bool kGelu, typename T, typename A>
void forward_plane(const GatedDwconvForward& args, int64_t batch, int64_t channel, A* memory) {
  const int64_t width = args.size.width, ring = Ring<A>::size(width);
  const Ring<A> xa(memory, width), xg(memory + ring, width);
  A* __restrict a = memory + 2 * ring;
  A* __restrict g = a + width;
  const Taps<A> taps = taps_of<A>(args.weight, args.bias, channel, args.size.channels);
  advance<T, A>(args.x, args.size, batch, channel, 0, xa, xg);
  for (int64_t i = 0; i < args.size.height; ++i) {
    advance<T, A>(args.x, args.size, batch, channel, i + 1, xa, xg);
    convolve_row<false>(xa, i, taps.a, taps.bias_a, a, width);
    convolve_row<false>(xg, i, taps.g, taps.bias_g, g, width);
    T* __restrict y = args.y.at<T>(batch, channel, i * width);
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) store(y + j, gated_value<kGelu>(a[j], g[j]));
  }
}

template <bool kGelu, bool kGive, typename T, typename A>
void backward_plane(const GatedDwconvBackward& args, int64_t batch, int64_t channel, A* memory, double* sums) {
  const int64_t width = args.size.width, height = args.size.height, ring = Ring<A>::size(width);
  const Ring<A> xa(memory, width), xg(memory + ring, width);
  const Ring<A> da(memory + 2 * ring, width), dg(memory + 3 * ring, width);
  A* __restrict a = memory + 4 * ring;
  A* __restrict g = a + width;
  const Taps<A> taps = taps_of<A>(args.weight, args.bias, channel, args.size.channels);
  TapSums<A> sums_a, sums_g;
  const auto emit = [&](int64_t index) {  // a row of dx, once the gradient's row below it is there
    convolve_row<true>(da, index, taps.a, A(0), a, width);
    convolve_row<true>(dg, index, taps.g, A(0), g, width);
    T* __restrict dx_a = args.dx.at<T>(batch, channel, index * width);
    T* __restrict dx_g = args.dx.at<T>(batch, channel + args.size.channels, index * width);
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) store(dx_a + j, a[j]);
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) store(dx_g + j, g[j]);
  };
  advance<T, A>(args.x, args.size, batch, channel, 0, xa, xg);
  for (int64_t i = 0; i < height; ++i) {
    advance<T, A>(args.x, args.size, batch, channel, i + 1, xa, xg);
    convolve_row<false>(xa, i, taps.a, taps.bias_a, a, width);
    convolve_row<false>(xg, i, taps.g, taps.bias_g, g, width);
    const T* __restrict dy = args.dy.at<const T>(batch, channel, i * width);
    T* __restrict y = kGive ? args.y.at<T>(batch, channel, i * width) : nullptr;
    A* __restrict row_a = da.row(i);
    A* __restrict row_g = dg.row(i);
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
      const GatedGradient<A> d = gated_gradient<kGelu>(static_cast<A>(load(dy + j)), a[j], g[j]);
      row_a[j] = d.da;
      row_g[j] = d.dg;
      if constexpr (kGive) store(y + j, d.y);
    }
    sums_a.add(xa, i, row_a, width, sums);
    sums_g.add(xg, i, row_g, width, sums + kTaps + 1);
    if (i > 0) emit(i - 1);
  }
  sums_a.flush(sums);
  sums_g.flush(sums + kTaps + 1);
  da.clear(height);
  dg.clear(height);
  emit(height - 1);
}

// Calls f(element pointer, std::bool_constant<gelu>).
template <typename F>
void dispatch_gated(DType dtype, bool gelu, F&& f) {
  dispatch(dtype, [&](auto* element) {
    if (gelu) {
      f(element, std::true_type());
    } else {
      f(element, std::false_type());
    }
  });
}

}  // namespace

void gated_dwconv_forward(const GatedDwconvForward& args, int threads) {
  dispatch_gated(args.dtype, args.gelu, [&](auto* element, auto gelu) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    const int64_t elements = 2 * Ring<A>::size(args.size.width) + 2 * args.size.width;
    parallel_for(args.size.batch * args.size.channels, threads, sizeof(A) * static_cast<size_t>(elements),
                 [&](int64_t i, char* scratch) {
                   forward_plane<decltype(gelu)::value, T>(args, i / args.size.channels, i % args.size.channels,
                                                           reinterpret_cast<A*>(scratch));
                 });
  });
}

void gated_dwconv_backward(const GatedDwconvBackward& args, int threads) {
  const int64_t channels = args.size.channels, items = args.size.batch * channels;
  const Scratch memory(sizeof(double) * static_cast<size_t>(items * kSums));
  double* const sums = reinterpret_cast<double*>(memory.data());
  for (int64_t i = 0; i < items * kSums; ++i) sums[i] = 0;
  dispatch_gated(args.dtype, args.gelu, [&](auto* element, auto gelu) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    const int64_t elements = 4 * Ring<A>::size(args.size.width) + 2 * args.size.width;
    parallel_for(items, threads, sizeof(A) * static_cast<size_t>(elements), [&](int64_t i, char* scratch) {
      const auto plane = args.y.data != nullptr ? backward_plane<decltype(gelu)::value, true, T, A>
                                                : backward_plane<decltype(gelu)::value, false, T, A>;
      plane(args, i / channels, i % channels, reinterpret_cast<A*>(scratch), sums + i * kSums);
    });
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t k = 0; k < kSums; ++k) {
        double total = 0;
        for (int64_t b = 0; b < args.size.batch; ++b) total += sums[(b * channels + c) * kSums + k];
        const int64_t channel = c + (k > kTaps ? channels : 0), tap = k % (kTaps + 1);
        A* const target = tap == kTaps ? static_cast<A*>(args.dbias) + channel
                                       : static_cast<A*>(args.dweight) + channel * kTaps + tap;
        *target = static_cast<A>(total);
      }
    }
  });
}

}  // namespace CPL_ISA
}  // namespace cpl
