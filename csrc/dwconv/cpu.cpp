// dwconv on CPU. Compiled once per instruction set.
//
// A work item is one channel of one image, which goes band by band through a buffer with a zero border (cpu_band.h); a
// band stays in the first cache. The backward fills it with dy once, for dx (cpu_convolve.h) and the weight's gradient
// (cpu_sums.h). Each item leaves its own sums, which are added over the batch in order.
#include <algorithm>
#include <type_traits>

#include "common/parallel.h"
#include "dwconv/cpu_band.h"
#include "dwconv/cpu_convolve.h"
#include "dwconv/cpu_flat.h"
#include "dwconv/cpu_sums.h"
#include "dwconv/op.h"

namespace cpl {
namespace CPL_ISA {
namespace {

constexpr int64_t kBandBytes = 20 << 10;  // of each buffer, where rows are not so wide that the fewest take more
constexpr int64_t kFewestRows = 8;

// How a plane is cut, a function of its size alone: bands of so many rows, all but the last a multiple of four.
template <int kSize, typename A>
struct Cut {
  using Dy = Band<A, kSize / 2>;
  static constexpr int64_t kBorders = kSize - 1, kStep = TapSums<kSize, A>::kRows;

  int64_t rows;

  explicit Cut(const DwconvSize& size) {
    const int64_t row_bytes = Dy::stride_of(size.width) * static_cast<int64_t>(sizeof(A));
    const int64_t most = std::max(kFewestRows, kBandBytes / row_bytes - kBorders);
    const int64_t bands = (size.height + most - 1) / most, each = (size.height + bands - 1) / bands;
    rows = (each + kStep - 1) / kStep * kStep;
  }
  int64_t buffered() const { return rows + kBorders; }
  // Calls f(first row, rows, rows of the buffer that are there already).
  template <typename F>
  void each(int64_t height, const F& f) const {
    for (int64_t first = 0; first < height; first += rows) {
      f(first, std::min(rows, height - first), first == 0 ? 0 : kBorders);
    }
  }
};

template <int kSize, typename T, typename A>
void fill(const Band<A, kSize / 2>& band, const Cut<kSize, A>& cut, const T* plane, int64_t first, int64_t there,
          int64_t height) {
  if (there > 0) band.keep_last(cut.buffered(), there);
  band.fill(there, cut.buffered(), plane, first - kSize / 2 + there, height);
}

template <int kSize, typename T, typename A>
void forward_plane(const DwconvForward& args, const Cut<kSize, A>& cut, int64_t batch, int64_t channel, A* memory) {
  const DwconvSize& size = args.size;
  const Band<A, kSize / 2> x(memory, cut.buffered(), size.width);
  const Taps<kSize, A> taps(args.weight, channel, false);
  const A bias = args.bias != nullptr ? static_cast<const A*>(args.bias)[channel] : A(0);
  const Convolution<kSize, T, A> convolution(x, size.width, taps, bias);
  cut.each(size.height, [&](int64_t first, int64_t rows, int64_t there) {
    fill<kSize>(x, cut, args.x.at<const T>(batch, channel, 0), first, there, size.height);
    convolution.run(rows, args.y.at<T>(batch, channel, first * size.width));
  });
}

template <int kSize, typename T, typename A>
void backward_plane(const DwconvBackward& args, const Cut<kSize, A>& cut, int64_t batch, int64_t channel, A* memory,
                    double* sums) {
  const DwconvSize& size = args.size;
  const Band<A, kSize / 2> dy(memory, cut.buffered(), size.width);
  const Band<A, 0> x(memory + Band<A, kSize / 2>::size(cut.buffered(), size.width), cut.rows, size.width);
  const Taps<kSize, A> taps(args.weight, channel, true);
  const Convolution<kSize, T, A> convolution(dy, size.width, taps, A(0));
  TapSums<kSize, A> tap_sums;
  cut.each(size.height, [&](int64_t first, int64_t rows, int64_t there) {
    fill<kSize>(dy, cut, args.dy.at<const T>(batch, channel, 0), first, there, size.height);
    const int64_t whole = (rows + cut.kStep - 1) / cut.kStep * cut.kStep;
    x.fill(0, whole, args.x.at<const T>(batch, channel, 0), first, size.height);
    tap_sums.add(x.row(0), x.stride(), dy, whole, size.width, sums);
    convolution.run(rows, args.dx.at<T>(batch, channel, first * size.width));
  });
  tap_sums.flush(sums);
}

// Images [first, end) of a channel.
template <int kSize, typename T, typename A>
void forward_small(const DwconvForward& args, const Flat<kSize, A>& flat, int64_t first, int64_t end, int64_t channel,
                   A* memory) {
  flat.template fill_bordered<T>(memory, args.x, first, end, channel);
  const A bias = args.bias != nullptr ? static_cast<const A*>(args.bias)[channel] : A(0);
  const Taps<kSize, A> taps(args.weight, channel, false);
  flat.template convolve<T>(memory, taps, bias, args.y, first, end, channel);
}

template <int kSize, typename T, typename A>
void backward_small(const DwconvBackward& args, const Flat<kSize, A>& flat, int64_t first, int64_t end, int64_t channel,
                    A* memory, double* sums) {
  A* const x = memory + flat.bordered();
  flat.template fill_bordered<T>(memory, args.dy, first, end, channel);
  flat.template fill<T>(x, args.x, first, end, channel);
  const Taps<kSize, A> taps(args.weight, channel, true);
  flat.template convolve<T>(memory, taps, A(0), args.dx, first, end, channel);
  flat.sum(x, memory, end - first, sums);
}

// Adds up a channel's sums over `count` images (or groups of images), the first one first.
template <int kSize, typename A>
void add_sums(const DwconvBackward& args, const double* sums, int64_t count) {
  constexpr int64_t kSums = TapSums<kSize, A>::kSums, kTaps = kSums - 1;
  const int64_t channels = args.size.channels;
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t k = 0; k < kSums; ++k) {
      double total = 0;
      for (int64_t b = 0; b < count; ++b) total += sums[(b * channels + c) * kSums + k];
      A* const target = k == kTaps ? static_cast<A*>(args.dbias) + c : static_cast<A*>(args.dweight) + c * kTaps + k;
      *target = static_cast<A>(total);
    }
  }
}

// Calls f(element pointer, std::integral_constant<kernel size>).
template <typename F>
void dispatch_size(DType dtype, int size, F&& f) {
  dispatch(dtype, [&](auto* element) {
    switch (size) {
      case 3:
        return f(element, std::integral_constant<int, 3>());
      case 5:
        return f(element, std::integral_constant<int, 5>());
      case 7:
        return f(element, std::integral_constant<int, 7>());
    }
    throw std::invalid_argument("the kernel size must be 3, 5 or 7");
  });
}

}  // namespace

void dwconv_forward(const DwconvForward& args, int threads) {
  dispatch_size(args.dtype, args.kernel, [&](auto* element, auto size) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    constexpr int kSize = decltype(size)::value;
    const int64_t channels = args.size.channels, batch = args.size.batch;
    if (Flat<kSize, A>::takes(args.size.height, args.size.width)) {
      const Flat<kSize, A> flat(batch, args.size.height, args.size.width);
      const int64_t each = flat.images(), groups = (batch + each - 1) / each;
      parallel_for(groups * channels, threads, sizeof(A) * static_cast<size_t>(flat.bordered()),
                   [&](int64_t i, char* scratch) {
                     const int64_t first = i / channels * each, end = std::min(batch, first + each);
                     forward_small<kSize, T>(args, flat, first, end, i % channels, reinterpret_cast<A*>(scratch));
                   });
    } else {
      const Cut<kSize, A> cut(args.size);
      const int64_t elements = Band<A, kSize / 2>::size(cut.buffered(), args.size.width);
      parallel_for(batch * channels, threads, sizeof(A) * static_cast<size_t>(elements), [&](int64_t i, char* scratch) {
        forward_plane<kSize, T>(args, cut, i / channels, i % channels, reinterpret_cast<A*>(scratch));
      });
    }
  });
}

void dwconv_backward(const DwconvBackward& args, int threads) {
  dispatch_size(args.dtype, args.kernel, [&](auto* element, auto size) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    constexpr int kSize = decltype(size)::value;
    constexpr int64_t kSums = TapSums<kSize, A>::kSums;
    const int64_t channels = args.size.channels, batch = args.size.batch;
    const auto bytes_of = [&](int64_t parts) { return sizeof(double) * static_cast<size_t>(parts * channels * kSums); };
    if (Flat<kSize, A>::takes(args.size.height, args.size.width)) {
      const Flat<kSize, A> flat(batch, args.size.height, args.size.width);
      const int64_t each = flat.images(), groups = (batch + each - 1) / each;
      const int64_t elements = flat.bordered() + flat.plain();
      const Scratch memory(bytes_of(groups));
      double* const sums = reinterpret_cast<double*>(memory.data());
      parallel_for(groups * channels, threads, sizeof(A) * static_cast<size_t>(elements),
                   [&](int64_t i, char* scratch) {
                     const int64_t first = i / channels * each, end = std::min(batch, first + each);
                     A* const own = reinterpret_cast<A*>(scratch);
                     backward_small<kSize, T>(args, flat, first, end, i % channels, own, sums + i * kSums);
                   });
      add_sums<kSize, A>(args, sums, groups);
    } else {
      const Cut<kSize, A> cut(args.size);
      const int64_t elements =
          Band<A, kSize / 2>::size(cut.buffered(), args.size.width) + Band<A, 0>::size(cut.rows, args.size.width);
      const Scratch memory(bytes_of(batch));
      double* const sums = reinterpret_cast<double*>(memory.data());
      parallel_for(batch * channels, threads, sizeof(A) * static_cast<size_t>(elements), [&](int64_t i, char* scratch) {
        double* const own = sums + i * kSums;
        for (int64_t k = 0; k < kSums; ++k) own[k] = 0;
        backward_plane<kSize, T>(args, cut, i / channels, i % channels, reinterpret_cast<A*>(scratch), own);
      });
      add_sums<kSize, A>(args, sums, batch);
    }
  });
}

}  // namespace CPL_ISA
}  // namespace cpl
