// gated_dwconv on CUDA.
//
// Warps walk down the two planes of a channel (common/rows.h). Backward they convolve again from x, form the gradient
// of the convolution a row behind and send it back through the taps: it exists in registers alone. Each strip of rows
// leaves its sums of dweight and dbias, which are added in order afterwards: no atomics, the same bits every time.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "common/rows.h"
#include "gated_dwconv/math.h"
#include "gated_dwconv/op.h"

namespace cpl::cuda {
namespace {

constexpr int kForwardHalo = 0;  // the lanes at the ends of a tile read one column more instead
constexpr int64_t kForwardRows = 8, kBackwardRows = 16;
// On an H200 the forward is bound by its arithmetic: neither more warps, whose strips have additional rows, nor a
// second row asked for ahead make it faster (the latter takes half as long again in bf16).
constexpr int64_t kForwardWarps = 16 * kMultiprocessors, kBackwardWarps = 40 * kMultiprocessors;
constexpr int kForwardBlocks = 9;   // on a multiprocessor: up to 112 registers; without a word ptxas spills for 72
constexpr int kBackwardBlocks = 6;  // on a multiprocessor: 168 registers, three warps for each scheduler

template <int kVector>
constexpr int backward_halo() {  // a gradient beside the tile takes x two columns beside it
  return kVector >= 2 ? 1 : 2;
}

template <bool kGelu, typename T, typename A, int kVector>
__global__ void __launch_bounds__(kWalkThreads, kForwardBlocks) forward(GatedDwconvForward args, RowWalk walk) {
  const GatedDwconvSize& size = args.size;
  const Segment<kVector> at(walk, size.height, size.width);
  const int64_t batch = at.plane / size.channels, channel = at.plane % size.channels;
  Convolution<A, kVector> a(args.weight, args.bias, channel), g(args.weight, args.bias, channel + size.channels);
  Rows<T, kVector, 1, true> xa(args.x.at<const T>(batch, channel, 0), at, -1);
  Rows<T, kVector, 1, true> xg(args.x.at<const T>(batch, channel + size.channels, 0), at, -1);
  T* y = args.y.at<T>(batch, channel, 0) + at.offset(-2);  // a row is complete with the one below it
  for (int n = 0; n < walk.rows + 2; ++n) {
    A row[kVector + 2];
    with_neighbours(xa.take(at), at.lane, at.lanes, row);
    a.take(row);
    with_neighbours(xg.take(at), at.lane, at.lanes, row);
    g.take(row);
    if (at.own && n >= 2 && n - 2 < at.rows) {
      A out[kVector];
      for (int i = 0; i < kVector; ++i) out[i] = gpu::gated_value<kGelu>(a.done[i], g.done[i]);
      write_pack(y, out);
    }
    y += size.width;
  }
}

// To the sums of a plane: rows of x above the gradient's row, at it and below (that with its neighbours).
template <typename A, int kVector>
__device__ void add_all(Transposed<A, kVector>& gradient, const A (&row)[kVector + 2], const A (&above)[kVector],
                        const A (&here)[kVector], const A (&below)[kVector + 2]) {
  A own[kVector];
  for (int i = 0; i < kVector; ++i) own[i] = below[i + 1];
  gradient.template add_row<0>(row, above);
  gradient.template add_row<1>(row, here);
  gradient.template add_row<2>(row, own);
  gradient.add_bias(row);
}

// partial: [2C, kTaps + 1, entries], an entry for each strip of each image.
template <bool kGelu, typename T, typename A, int kVector>
__global__ void __launch_bounds__(kWalkThreads, sizeof(A) == 8 ? 4 : kBackwardBlocks)
    backward(GatedDwconvBackward args, RowWalk walk, A* partial) {
  const GatedDwconvSize& size = args.size;
  const Segment<kVector> at(walk, size.height, size.width);
  const int64_t batch = at.plane / size.channels, channel = at.plane % size.channels;
  Convolution<A, kVector> a(args.weight, args.bias, channel), g(args.weight, args.bias, channel + size.channels);
  Transposed<A, kVector> da, dg;
  // x comes first, the convolution and the gradient are complete a row above it, dx two rows.
  Rows<T, kVector, kAhead<T>> xa(args.x.at<const T>(batch, channel, 0), at, -2);
  Rows<T, kVector, kAhead<T>> xg(args.x.at<const T>(batch, channel + size.channels, 0), at, -2);
  Rows<T, kVector, kAhead<T>> dy(args.dy.at<const T>(batch, channel, 0), at, -3);
  T* dx_a = args.dx.at<T>(batch, channel, 0) + at.offset(-4);
  T* dx_g = args.dx.at<T>(batch, channel + size.channels, 0) + at.offset(-4);
  A a0[kVector] = {}, a1[kVector] = {}, g0[kVector] = {}, g1[kVector] = {};
  for (int n = 0; n < walk.rows + 4; ++n) {
    A a2[kVector + 2], g2[kVector + 2], own_a[kVector], own_g[kVector], row[kVector + 2];
    with_neighbours(xa.take(at), at.lane, at.lanes, a2);
    with_neighbours(xg.take(at), at.lane, at.lanes, g2);
    const Row<T, kVector> up = dy.take(at);
    const bool has_gradient = at.real && n >= 3 - at.above && n < 3 + at.rows + at.below;
    a.take(a2);
    g.take(g2);
    for (int i = 0; i < kVector; ++i) {
      const gpu::GatedGradient<A> d =
          gpu::gated_gradient<kGelu>(static_cast<A>(load(up.pack.values + i)), a.done[i], g.done[i]);
      own_a[i] = has_gradient ? d.da : A(0);  // beside the image the convolution may be NaN, and dy 0
      own_g[i] = has_gradient ? d.dg : A(0);
    }
    const bool summed = at.own && n >= 3 && n - 3 < at.rows;
    with_neighbours(own_a, at.lane, at.lanes, row);
    da.take(row, a.taps);
    if (summed) add_all(da, row, a0, a1, a2);
    with_neighbours(own_g, at.lane, at.lanes, row);
    dg.take(row, g.taps);
    if (summed) add_all(dg, row, g0, g1, g2);
    if (at.own && n >= 4 && n - 4 < at.rows) {
      write_pack(dx_a, da.done);
      write_pack(dx_g, dg.done);
    }
    dx_a += size.width, dx_g += size.width;
    for (int i = 0; i < kVector; ++i) {
      a0[i] = a1[i], a1[i] = a2[i + 1];
      g0[i] = g1[i], g1[i] = g2[i + 1];
    }
  }
  const int64_t entries = size.batch * walk.parts(), entry = batch * walk.parts() + at.part;
  const bool writes = at.exists && at.lane == 0;
  da.leave(partial, channel, entries, entry, at.lanes, writes);
  dg.leave(partial, channel + size.channels, entries, entry, at.lanes, writes);
}

template <int kColumns>
RowWalk forward_walk(const GatedDwconvSize& size) {
  return walk_rows(size.batch * size.channels, size.height, size.width, kColumns, kForwardHalo, kForwardRows,
                   kForwardWarps);
}

template <int kColumns>
RowWalk backward_walk(const GatedDwconvSize& size) {
  const int halo = backward_halo<kColumns>();
  return walk_rows(size.batch * size.channels, size.height, size.width, kColumns, halo, kBackwardRows, kBackwardWarps);
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

int64_t gated_dwconv_partial(const GatedDwconvSize& size) {
  const int64_t parts = std::max(backward_walk<1>(size).parts(), backward_walk<kPackColumns>(size).parts());
  return 2 * size.channels * (kTaps + 1) * size.batch * parts;
}

void gated_dwconv_forward(const GatedDwconvForward& args, void* stream) {
  dispatch_gated(args.dtype, args.gelu, [&](auto* element, auto gelu) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    dispatch_columns<T>({&args.x, &args.y}, args.size.width, [&](auto columns) {
      constexpr int kColumns = decltype(columns)::value;
      const RowWalk walk = forward_walk<kColumns>(args.size);
      CPL_LAUNCH((forward<decltype(gelu)::value, T, A, kColumns>), walk.blocks(), dim3(kWalkThreads), 0, stream, args,
                 walk);
    });
  });
}

void gated_dwconv_backward(const GatedDwconvBackward& args, void* partial, void* stream) {
  dispatch_gated(args.dtype, args.gelu, [&](auto* element, auto gelu) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    dispatch_columns<T>({&args.dy, &args.x, &args.dx}, args.size.width, [&](auto columns) {
      constexpr int kColumns = decltype(columns)::value;
      const RowWalk walk = backward_walk<kColumns>(args.size);
      CPL_LAUNCH((backward<decltype(gelu)::value, T, A, kColumns>), walk.blocks(), dim3(kWalkThreads), 0, stream, args,
                 walk, static_cast<A*>(partial));
      launch_reduce_strips(static_cast<const A*>(partial), args.dweight, args.dbias, 2 * args.size.channels,
                           args.size.batch * walk.parts(), stream);
    });
  });
}

}  // namespace cpl::cuda
