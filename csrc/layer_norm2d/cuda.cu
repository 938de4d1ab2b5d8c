// layer_norm2d on CUDA: what is launched, over how many blocks.
//
// The backward adds dweight and dbias up without atomics: blocks are persistent, block b walks tiles b, b + gridDim,
// ... in order and leaves one row of sums; a second kernel adds the rows up in a fixed tree.
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "common/launch.h"
#include "layer_norm2d/cuda_last.h"
#include "layer_norm2d/cuda_plan.h"
#include "layer_norm2d/cuda_planar.h"
#include "layer_norm2d/cuda_reduce.h"
#include "layer_norm2d/cuda_tile_backward.h"
#include "layer_norm2d/cuda_tile_forward.h"
#include "layer_norm2d/op.h"

namespace cpl::cuda {
namespace {

bool planar(const ImageView& view) { return view.stride_pixel == 1; }

// Whether rows of runs begin where a run's load may.
template <typename T>
bool aligned(const LayerNorm2dSize& size, std::initializer_list<ImageView> views) {
  bool yes = size.pixels % kRun == 0;
  for (const ImageView& v : views) {
    yes = yes && reinterpret_cast<uintptr_t>(v.data) % (kRun * sizeof(T)) == 0 &&
          (size.batch == 1 || v.stride_batch % kRun == 0) && (size.channels == 1 || v.stride_channel % kRun == 0);
  }
  return yes;
}

// Calls f(tiling, run, channels of a thread), the latter two known to the compiler; false where no tiling serves.
template <typename T, bool kBackward, typename F>
bool in_tiles(const LayerNorm2dSize& size, bool runs, F&& f) {
  constexpr int kMost = most_channels(sizeof(T), kBackward);
  const Tiling t = tiling(size, sizeof(T), runs, kBackward);
  if (t.per_thread == 0) return false;
  if (!runs) {
    f(t, std::integral_constant<int, 1>(), std::integral_constant<int, kAlone>());
  } else if (t.per_thread == kMost) {
    f(t, std::integral_constant<int, kRun>(), std::integral_constant<int, kMost>());
  } else if (t.per_thread == kMost / 2) {
    f(t, std::integral_constant<int, kRun>(), std::integral_constant<int, kMost / 2>());
  } else if constexpr (kMost > 4) {
    f(t, std::integral_constant<int, kRun>(), std::integral_constant<int, kMost / 4>());
  }
  return true;
}

template <typename T>
bool forward_in_tiles(const LayerNorm2dForward& args, void* stream) {
  return in_tiles<T, false>(args.size, aligned<T>(args.size, {args.x, args.y}), [&](Tiling t, auto run, auto per) {
    CPL_LAUNCH((forward_tile<T, decltype(run)::value, decltype(per)::value>), t.tiles, dim3(t.warps * kWarp), 0, stream,
               args, t);
  });
}

template <typename T>
bool backward_in_tiles(const LayerNorm2dBackward& args, float* partial, int64_t& rows, void* stream) {
  // The statistics of a run are four floats at once.
  const bool runs = aligned<T>(args.size, {args.dy, args.x, args.dx}) &&
                    (reinterpret_cast<uintptr_t>(args.mean) | reinterpret_cast<uintptr_t>(args.rstd)) % 16 == 0;
  return in_tiles<T, true>(args.size, runs, [&](Tiling t, auto run, auto per) {
    rows = tile_rows(t);
    CPL_LAUNCH((backward_tile<T, decltype(run)::value, decltype(per)::value>), grid_size(rows), dim3(t.warps * kWarp),
               0, stream, args, t, partial);
  });
}

}  // namespace

// Enough for every way to walk an image of this size; channels-last leaves a row for each of a block's warps.
int64_t layer_norm2d_partial_rows(const LayerNorm2dSize& size) {
  const int64_t planar_rows = persistent_blocks(tiles(size, kPixels));
  int64_t most = kWarps * persistent_blocks(tiles(size, kWarps));
  if (planar_rows > most) most = planar_rows;
  for (const int element : {2, 4}) {
    for (const bool runs : {false, true}) {
      const int64_t rows = tile_rows(tiling(size, element, runs, true));
      if (rows > most) most = rows;
    }
  }
  return most;
}

void layer_norm2d_forward(const LayerNorm2dForward& args, void* stream) {
  dispatch(args.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    if (!planar(args.x)) {
      const int64_t blocks = cdiv(args.size.batch * args.size.pixels, kWarps);
      CPL_LAUNCH((forward_last<T, A>), grid_size(blocks), dim3(kWarp, kWarps), 0, stream, args);
      return;
    }
    if constexpr (sizeof(T) <= 4) {
      if (forward_in_tiles<T>(args, stream)) return;
    }
    CPL_LAUNCH((forward_planar<T, A>), grid_size(tiles(args.size, kPixels)), dim3(kPixels, kGroups), 0, stream, args);
  });
}

void layer_norm2d_backward(const LayerNorm2dBackward& args, void* partial, void* stream) {
  dispatch(args.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    A* const sums = static_cast<A*>(partial);
    const auto launch = [&] {
      if (!planar(args.x)) {
        const int64_t blocks = persistent_blocks(tiles(args.size, kWarps));
        CPL_LAUNCH((backward_last<T, A>), grid_size(blocks), dim3(kWarp, kWarps), 0, stream, args, sums);
        return kWarps * blocks;
      }
      int64_t rows = persistent_blocks(tiles(args.size, kPixels));
      if constexpr (sizeof(T) <= 4) {
        if (backward_in_tiles<T>(args, sums, rows, stream)) return rows;
      }
      CPL_LAUNCH((backward_planar<T, A>), grid_size(rows), dim3(kPixels, kGroups), 0, stream, args, sums);
      return rows;
    };
    const int64_t rows = launch();
    CPL_LAUNCH((reduce_rows<A>), grid_size(cdiv(2 * args.size.channels, kReduceColumns)),
               dim3(kReduceColumns, kReduceRows), 0, stream, static_cast<const A*>(partial),
               static_cast<A*>(args.dweight), static_cast<A*>(args.dbias), rows, args.size.channels);
  });
}

}  // namespace cpl::cuda
