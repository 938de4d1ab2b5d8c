// channel_attention on CUDA: on the tensor cores with fp32's accuracy, fp64 images in fp64 without them.
//
// The pixels of a head are cut into slices, each of which leaves the products of its channels (forward of q and k, with
// their norms; backward of dy and v); the slices are added in order. No atomics: the same bits every time.
#include <cstdint>
#include <stdexcept>
#include <type_traits>

#include "channel_attention/cuda_apply.h"
#include "channel_attention/cuda_products.h"
#include "channel_attention/cuda_small.h"
#include "channel_attention/cuda_tiles.h"
#include "channel_attention/op.h"

namespace cpl::cuda {
namespace {

constexpr int64_t kMultiprocessors = 132;
constexpr int64_t kSliceUnit = 256;  // pixels: a chunk for each warp of a block

unsigned grid_size(int64_t blocks, int64_t most = 0x7fffffff) {
  if (blocks > most) throw std::invalid_argument("channel_attention: more blocks than a grid has; split the batch");
  return static_cast<unsigned>(blocks);
}

int64_t up(int64_t n, int64_t by) { return (n + by - 1) / by; }

unsigned tiles(const ChannelAttentionSize& size) { return grid_size(up(size.width, kTile), 65535); }

int64_t heads_of(const ChannelAttentionSize& size) { return size.batch * size.heads; }

// Blocks of `products_mma` along each side of a head's matrix.
int64_t product_blocks(const ChannelAttentionSize& size) { return size.width > kBand ? up(size.width, 2 * kBand) : 1; }

// One block of products for each multiprocessor, as it takes all registers. A function of the size alone, so that sums
// have the same order every time.
int64_t slice_pixels(const ChannelAttentionSize& size) {
  const int64_t across = product_blocks(size), wanted = kMultiprocessors / (heads_of(size) * across * across);
  return up(up(size.pixels, wanted > 1 ? wanted : 1), kSliceUnit) * kSliceUnit;
}

// The scratch buffer of a call, cut up.
template <typename A>
struct Scratch {
  Sums<A> sums;
  A* attention;    // [heads of all images, c, c]
  A* matrix;       // [heads of all images, c, c]
  A* projections;  // [heads of all images, 2, c]
  A* share;        // [heads of all images, c]
  int64_t elements;

  Scratch(const ChannelAttentionSize& size, void* memory) : sums{}, elements(0) {
    const int64_t heads = heads_of(size), entries = heads * size.width * size.width;
    sums.slice_pixels = slice_pixels(size);
    sums.slices = up(size.pixels, sums.slice_pixels);
    const auto take = [&](int64_t count) {
      A* const part = memory == nullptr ? nullptr : static_cast<A*>(memory) + elements;
      elements += count;
      return part;
    };
    sums.products = take(entries * sums.slices);
    sums.squares = take(heads * sums.slices * 2 * size.width);
    attention = take(entries);
    matrix = take(entries);
    projections = take(heads * 2 * size.width);
    share = take(heads * size.width);
  }
};

template <typename A, typename Args>
Heads<A> heads(const Args& args, const Scratch<A>& scratch) {
  const auto at = [](const void* data) { return static_cast<A*>(const_cast<void*>(data)); };
  return {at(args.temperature), at(args.q_norm),       at(args.k_norm),      at(args.cosines),
          scratch.attention,    scratch.sums.products, scratch.sums.squares, scratch.sums.slices};
}

// Whether rows of pixels can be read and written 16 bytes at a time.
template <typename T>
bool wide(const ImageView& view, const ChannelAttentionSize& size) {
  constexpr int64_t kElements = 16 / sizeof(T);
  return view.stride_pixel == 1 && size.pixels % kElements == 0 && view.stride_channel % kElements == 0 &&
         view.stride_batch % kElements == 0 && reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
}

template <bool kSquares, typename T, typename A>
void launch_products(const ImageView& x, int x_third, const ImageView& y, int y_third, const ChannelAttentionSize& size,
                     const Sums<A>& sums, void* stream) {
  const unsigned heads = grid_size(heads_of(size) * sums.slices);
  if constexpr (std::is_same_v<T, double>) {
    CPL_LAUNCH((products<kSquares, T, A>), dim3(heads, tiles(size), tiles(size)), dim3(kSide, kSide), 0, stream, x,
               x_third, y, y_third, size, sums);
  } else {
    const unsigned across = grid_size(product_blocks(size), 65535);
    const dim3 grid(heads, across, across), block(kProductThreads);
    if (wide<T>(x, size) && wide<T>(y, size)) {
      CPL_LAUNCH((products_mma<kSquares, true, T>), grid, block, 0, stream, x, x_third, y, y_third, size, sums);
    } else {
      CPL_LAUNCH((products_mma<kSquares, false, T>), grid, block, 0, stream, x, x_third, y, y_third, size, sums);
    }
  }
}

// Fragments of more than 48 KiB have to be asked for.
template <typename Kernel>
size_t allow_shared(Kernel* kernel, size_t bytes) {
  if (bytes > 48 * 1024) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
          "channel_attention");
  }
  return bytes;
}

template <bool kWide, typename T>
void launch_apply_mma(const Roles& roles, const ImageView& z, const ChannelAttentionSize& size, void* stream) {
  if (size.width > 1 << 24) throw std::invalid_argument("channel_attention: more than 2^24 channels in a head");
  Walk walk;
  walk.groups = size.width > kOutRows ? 2 : 1;
  walk.bands = static_cast<unsigned>(up(size.width, kOutRows * walk.groups));
  const int64_t steps = up(size.width, 8), pieces = heads_of(size) * roles.count * walk.bands;
  walk.kept = static_cast<int>(steps < kKept ? steps : kKept);
  const int64_t rounds = up(size.pixels, kApplyWarps / walk.groups * kPixels);
  const int64_t blocks = kApplyBlocks<kWide> * kMultiprocessors, wanted = blocks > pieces ? blocks / pieces : 1;
  const int64_t walkers = up(rounds, up(rounds, wanted));  // as many rounds for each
  walk.rounds = grid_size(rounds);
  walk.walkers = grid_size(walkers);
  const size_t bytes = sizeof(Fragment) * static_cast<size_t>(walk.groups * kOutTiles * walk.kept);
  CPL_LAUNCH((apply_mma<kWide, T>), grid_size(pieces * walkers), dim3(kApplyThreads),
             allow_shared(apply_mma<kWide, T>, bytes), stream, roles, z, size, walk);
}

template <typename A>
struct Step {
  Factor<A> factor;
  const ImageView& x;
};

template <typename T, typename A, int kSteps>
void launch_apply(const Step<A> (&steps)[kSteps], const ImageView& z, const ChannelAttentionSize& size, void* stream) {
  if constexpr (std::is_same_v<T, double>) {
    const dim3 grid(grid_size(heads_of(size) * up(size.pixels, kTile)), tiles(size));
    for (const Step<A>& step : steps) {
      CPL_LAUNCH((apply<T, A>), grid, dim3(kSide, kSide), 0, stream, step.x, z, size, step.factor, step.factor);
    }
  } else {
    static_assert(kSteps <= kRoles);
    Roles roles{};
    bool all_wide = wide<T>(z, size);
    for (const Step<A>& step : steps) {
      roles.role[roles.count++] = {step.factor, step.x};
      all_wide = all_wide && wide<T>(step.x, size);
    }
    if (all_wide) {
      launch_apply_mma<true, T>(roles, z, size, stream);
    } else {
      launch_apply_mma<false, T>(roles, z, size, stream);
    }
  }
}

}  // namespace

int64_t channel_attention_scratch(const ChannelAttentionSize& size) { return Scratch<float>(size, nullptr).elements; }

void channel_attention_forward(const ChannelAttentionForward& args, void* memory, void* stream) {
  dispatch(args.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    const ChannelAttentionSize& size = args.size;
    const Scratch<A> scratch(size, memory);
    launch_products<true, T>(args.qkv, 0, args.qkv, 1, size, scratch.sums, stream);
    CPL_LAUNCH((forward_rows<A>), grid_size(up(heads_of(size) * size.width, kRows)), dim3(kWarp, kRows), 0, stream,
               size, heads<A>(args, scratch));
    const Step<A> steps[] = {{{scratch.attention, nullptr, false, 2, 0, 0}, args.qkv}};
    launch_apply<T>(steps, args.y, size, stream);
  });
}

void channel_attention_backward(const ChannelAttentionBackward& args, void* memory, void* stream) {
  dispatch(args.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    const ChannelAttentionSize& size = args.size;
    const Scratch<A> scratch(size, memory);
    const Heads<A> all = heads<A>(args, scratch);
    const int64_t rows = heads_of(size) * size.width;
    launch_products<false, T>(args.dy, 0, args.qkv, 2, size, scratch.sums, stream);
    CPL_LAUNCH((backward_rows<A>), grid_size(up(rows, kRows)), dim3(kWarp, kRows), 0, stream, size, all, scratch.matrix,
               scratch.projections, scratch.share);
    const int64_t columns = up(rows, kWarp);
    CPL_LAUNCH((backward_columns<A>), grid_size(columns + size.heads), dim3(kWarp, kSharers), 0, stream, size, all,
               static_cast<const A*>(scratch.matrix), scratch.projections, static_cast<const A*>(scratch.share),
               static_cast<A*>(args.dtemperature), grid_size(columns));
    const Step<A> steps[] = {{{scratch.matrix, scratch.projections, false, 1, 0, 0}, args.qkv},
                             {{scratch.matrix, scratch.projections, true, 0, 1, 1}, args.qkv},
                             {{scratch.attention, nullptr, true, 0, 2, 0}, args.dy}};
    launch_apply<T>(steps, args.dqkv, size, stream);
  });
}

}  // namespace cpl::cuda
