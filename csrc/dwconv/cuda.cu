// dwconv on CUDA: warps walk down the planes (common/rows.h). Here is 3x3; larger filters are in cuda_columns.h. The
// backward reads x and dy once for dx and the weight's gradient together; each strip of rows leaves its sums, which are
// added in order afterwards: no atomics, the same bits every time.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "common/rows.h"
#include "dwconv/cuda_columns.h"
#include "dwconv/op.h"

namespace cpl::cuda {
namespace {

constexpr int kForwardBlocks = 16;  // on a multiprocessor: up to 64 registers; without a word ptxas spills for 48
constexpr int64_t kWarps = 40 * kMultiprocessors;
constexpr int64_t kLeastRows = 8;  // of a strip: two more are read twice

template <typename T, typename A, int kVector>
__global__ void __launch_bounds__(kWalkThreads, kForwardBlocks) forward(DwconvForward args, RowWalk walk) {
  const DwconvSize& size = args.size;
  const Segment<kVector> at(walk, size.height, size.width);
  const int64_t batch = at.plane / size.channels, channel = at.plane % size.channels;
  Convolution<A, kVector> convolution(args.weight, args.bias, channel);
  Rows<T, kVector, kAhead<T>, true> x(args.x.at<const T>(batch, channel, 0), at, -1);
  T* y = args.y.at<T>(batch, channel, 0) + at.offset(-2);  // a row is complete with the one below it
  for (int n = 0; n < walk.rows + 2; ++n) {
    A row[kVector + 2];
    with_neighbours(x.take(at), at.lane, at.lanes, row);
    convolution.take(row);
    if (at.own && n >= 2 && n - 2 < at.rows) write_pack(y, convolution.done);
    y += size.width;
  }
}

// partial: [C, kTaps + 1, entries], an entry for each strip of each image.
template <typename T, typename A, int kVector>
__global__ void __launch_bounds__(kWalkThreads) backward(DwconvBackward args, RowWalk walk, A* partial) {
  const DwconvSize& size = args.size;
  const Segment<kVector> at(walk, size.height, size.width);
  const int64_t batch = at.plane / size.channels, channel = at.plane % size.channels;
  A taps[kTaps];
  for (int k = 0; k < kTaps; ++k) taps[k] = static_cast<const A*>(args.weight)[channel * kTaps + k];
  Transposed<A, kVector> gradient;
  Rows<T, kVector, kAhead<T>> x(args.x.at<const T>(batch, channel, 0), at, -1);
  Rows<T, kVector, kAhead<T>, true> dy(args.dy.at<const T>(batch, channel, 0), at, -1);
  T* dx = args.dx.at<T>(batch, channel, 0) + at.offset(-2);
  A x0[kVector] = {}, dy0[kVector + 2] = {};
  for (int n = 0; n < walk.rows + 2; ++n) {
    A x1[kVector], dy1[kVector + 2];
    const Row<T, kVector> here = x.take(at);
    for (int i = 0; i < kVector; ++i) x1[i] = load(here.pack.values + i);
    with_neighbours(dy.take(at), at.lane, at.lanes, dy1);
    gradient.take(dy1, taps);
    // A row of dy is the strip's with the rows of x above, here and below it.
    if (at.own && n >= 1 && n - 1 < at.rows) {
      gradient.template add_row<0>(dy1, x0);
      gradient.template add_row<1>(dy1, x1);
      gradient.add_bias(dy1);
    }
    if (at.own && n >= 2 && n - 2 < at.rows) {
      gradient.template add_row<2>(dy0, x1);
      write_pack(dx, gradient.done);
    }
    dx += size.width;
    for (int i = 0; i < kVector; ++i) x0[i] = x1[i];
    for (int i = 0; i < kVector + 2; ++i) dy0[i] = dy1[i];
  }
  gradient.leave(partial, channel, size.batch * walk.parts(), batch * walk.parts() + at.part, at.lanes,
                 at.exists && at.lane == 0);
}

template <int kColumns>
RowWalk walk_of(const DwconvSize& size) {
  return walk_rows(size.batch * size.channels, size.height, size.width, kColumns, 0, kLeastRows, kWarps);
}

// 3x3.
void forward_rows(const DwconvForward& args, void* stream) {
  dispatch(args.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    dispatch_columns<T>({&args.x, &args.y}, args.size.width, [&](auto columns) {
      constexpr int kColumns = decltype(columns)::value;
      const RowWalk walk = walk_of<kColumns>(args.size);
      CPL_LAUNCH((forward<T, A, kColumns>), walk.blocks(), dim3(kWalkThreads), 0, stream, args, walk);
    });
  });
}

void backward_rows(const DwconvBackward& args, void* partial, void* stream) {
  dispatch(args.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    dispatch_columns<T>({&args.dy, &args.x, &args.dx}, args.size.width, [&](auto columns) {
      constexpr int kColumns = decltype(columns)::value;
      const RowWalk walk = walk_of<kColumns>(args.size);
      CPL_LAUNCH((backward<T, A, kColumns>), walk.blocks(), dim3(kWalkThreads), 0, stream, args, walk,
                 static_cast<A*>(partial));
      launch_reduce_strips(static_cast<const A*>(partial), args.dweight, args.dbias, args.size.channels,
                           args.size.batch * walk.parts(), stream);
    });
  });
}

// Calls f(std::integral_constant<kernel size>, element pointer), for those of cuda_columns.h.
template <typename F>
void dispatch_larger(int kernel, DType dtype, F&& f) {
  dispatch(dtype, [&](auto* element) {
    if (kernel == 5) return f(std::integral_constant<int, 5>(), element);
    if (kernel == 7) return f(std::integral_constant<int, 7>(), element);
    throw std::invalid_argument("the kernel size must be 3, 5 or 7");
  });
}

}  // namespace

int64_t dwconv_partial(const DwconvSize& size, int kernel) {
  const int64_t parts = kernel == 3 ? std::max(walk_of<1>(size).parts(), walk_of<kPackColumns>(size).parts())
                                    : column_walk(size, kWarps).parts();
  return size.channels * (kernel * kernel + 1) * size.batch * parts;
}

void dwconv_forward(const DwconvForward& args, void* stream) {
  if (args.kernel == 3) return forward_rows(args, stream);
  dispatch_larger(args.kernel, args.dtype, [&](auto size, auto* element) {
    forward_columns<decltype(size)::value, std::remove_pointer_t<decltype(element)>>(args, kWarps, stream);
  });
}

void dwconv_backward(const DwconvBackward& args, void* partial, void* stream) {
  if (args.kernel == 3) return backward_rows(args, partial, stream);
  dispatch_larger(args.kernel, args.dtype, [&](auto size, auto* element) {
    backward_columns<decltype(size)::value, std::remove_pointer_t<decltype(element)>>(args, partial, kWarps, stream);
  });
}

}  // namespace cpl::cuda
