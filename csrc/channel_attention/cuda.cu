// channel_attention on CUDA, in fp32 (fp64 for fp64 images) without tensor cores.
//
// The pixels of a head are cut into slices, each of which leaves the products of its channels (forward of q and k, with
// their norms; backward of dy and v); the slices are added in order. No atomics: the same bits every time.
#include <cstdint>
#include <stdexcept>
#include <type_traits>

#include "channel_attention/cuda_small.h"
#include "channel_attention/cuda_tiles.h"
#include "channel_attention/op.h"

namespace cpl::cuda {
namespace {

constexpr int64_t kBlocksWanted = 528;  // of `products`: four for each of 132 multiprocessors
constexpr int64_t kLeastSlice = 256;    // pixels: below this a slice's sums take as long to add up as to make

unsigned grid_size(int64_t blocks, int64_t most = 0x7fffffff) {
  if (blocks > most) throw std::invalid_argument("channel_attention: more blocks than a grid has; split the batch");
  return static_cast<unsigned>(blocks);
}

int64_t up(int64_t n, int64_t by) { return (n + by - 1) / by; }

unsigned tiles(const ChannelAttentionSize& size) { return grid_size(up(size.width, kTile), 65535); }

int64_t heads_of(const ChannelAttentionSize& size) { return size.batch * size.heads; }

// A function of the size alone, so that sums have the same order every time.
int64_t slice_pixels(const ChannelAttentionSize& size) {
  const int64_t across = up(size.width, kTile), wanted = kBlocksWanted / (heads_of(size) * across * across);
  const int64_t even = up(up(size.pixels, wanted > 1 ? wanted : 1), kStep) * kStep;
  return even > kLeastSlice ? even : kLeastSlice;
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

dim3 products_grid(const ChannelAttentionSize& size, int64_t slices) {
  return dim3(grid_size(heads_of(size) * slices), tiles(size), tiles(size));
}

dim3 apply_grid(const ChannelAttentionSize& size, unsigned factors) {
  return dim3(grid_size(heads_of(size) * up(size.pixels, kTile)), tiles(size), factors);
}

}  // namespace

int64_t channel_attention_scratch(const ChannelAttentionSize& size) { return Scratch<float>(size, nullptr).elements; }

void channel_attention_forward(const ChannelAttentionForward& args, void* memory, void* stream) {
  dispatch(args.dtype, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    using A = typename Arithmetic<T>::type;
    const ChannelAttentionSize& size = args.size;
    const Scratch<A> scratch(size, memory);
    const dim3 block(kSide, kSide);
    CPL_LAUNCH((products<true, T, A>), products_grid(size, scratch.sums.slices), block, 0, stream, args.qkv, 0,
               args.qkv, 1, size, scratch.sums);
    CPL_LAUNCH((forward_rows<A>), grid_size(up(heads_of(size) * size.width, kRows)), dim3(kWarp, kRows), 0, stream,
               size, heads<A>(args, scratch));
    const Factor<A> attention{scratch.attention, nullptr, false, 2, 0, 0};
    CPL_LAUNCH((apply<T, A>), apply_grid(size, 1), block, 0, stream, args.qkv, args.y, size, attention, attention);
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
    const dim3 block(kSide, kSide);
    CPL_LAUNCH((products<false, T, A>), products_grid(size, scratch.sums.slices), block, 0, stream, args.dy, 0,
               args.qkv, 2, size, scratch.sums);
    CPL_LAUNCH((backward_rows<A>), grid_size(up(rows, kRows)), dim3(kWarp, kRows), 0, stream, size, all, scratch.matrix,
               scratch.projections, scratch.share);
    CPL_LAUNCH((backward_columns<A>), grid_size(up(rows, kWarp * kRows)), dim3(kWarp * kRows), 0, stream, size, all,
               static_cast<const A*>(scratch.matrix), scratch.projections);
    CPL_LAUNCH((sum_temperature<A>), grid_size(size.heads), dim3(kWarp), 0, stream, size,
               static_cast<const A*>(scratch.share), static_cast<A*>(args.dtemperature));
    const Factor<A> to_v{scratch.attention, nullptr, true, 0, 2, 0};
    CPL_LAUNCH((apply<T, A>), apply_grid(size, 1), block, 0, stream, args.dy, args.dqkv, size, to_v, to_v);
    const Factor<A> to_q{scratch.matrix, scratch.projections, false, 1, 0, 0};
    const Factor<A> to_k{scratch.matrix, scratch.projections, true, 0, 1, 1};
    CPL_LAUNCH((apply<T, A>), apply_grid(size, 2), block, 0, stream, args.qkv, args.dqkv, size, to_q, to_k);
  });
}

}  // namespace cpl::cuda
