// How channel_attention divides its work on CPU, and how pixels get into scratch memory and back.
//
// A block is a run of pixels of one head: its rows are brought into scratch memory, widened and dense. (Read where they
// are, they would push each other out of the cache: planes of a 128x128 image lie 64 KiB apart.) All bounds depend on
// the size alone, never on the thread count: the same bits at any number of threads.
#pragma once

#include <algorithm>
#include <type_traits>

#include "channel_attention/cpu_products.h"
#include "channel_attention/op.h"
#include "common/dtype.h"

namespace cpl {
namespace CPL_ISA {
namespace {

constexpr int64_t kStep = 64;         // pixels: every block is a multiple of it, and it of every panel
constexpr int64_t kLeastBlock = 512;  // pixels of a sum: in shorter ones the ends cost more than the middle
constexpr size_t kBlockBytes = size_t{208} << 10;  // of one operand of a sum: two of them stay in the L2 cache
constexpr int64_t kRowsAhead = 2;                  // fetched ahead: each lies in another page
constexpr int64_t kSlices = 32;                    // of a sum over all heads and images: enough to share out

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Sums over pixels: of each head the pixels are cut into slices, which leave a row of partial sums each, and a slice
// into blocks.
struct Slices {
  int64_t block;   // pixels of a block
  int64_t blocks;  // of a head
  int64_t per_head;
  int64_t heads;  // of all images

  template <typename A>
  static Slices of(const ChannelAttentionSize& size) {
    const int64_t heads = size.batch * size.heads, wanted = std::max<int64_t>(1, kSlices / heads);
    const int64_t fits = static_cast<int64_t>(kBlockBytes / sizeof(A)) / size.width / kStep * kStep;
    const int64_t shared = round_up((size.pixels + wanted - 1) / wanted, kStep);
    const int64_t block = std::max(kLeastBlock, std::min(fits, shared));
    const int64_t blocks = (size.pixels + block - 1) / block;
    return {block, blocks, std::max<int64_t>(1, std::min(wanted, blocks)), heads};
  }
  int64_t total() const { return heads * per_head; }
};

// Pixels [first, first + count) of a head; `padded` more than `count` are worked on, zeros.
struct Block {
  int64_t batch;
  int64_t head;
  int64_t first;
  int64_t count;
  int64_t padded;
};

inline Block block_at(const ChannelAttentionSize& size, int64_t head, int64_t block, int64_t index) {
  const int64_t first = index * block, count = std::min(block, size.pixels - first);
  return {head / size.heads, head % size.heads, first, count, round_up(count, kStep)};
}

// One head's channels of one third of qkv (or of y), over a block.
template <typename T>
struct Rows {
  T* data;
  int64_t stride_channel;
  int64_t stride_pixel;

  Rows(const ImageView& view, const ChannelAttentionSize& size, const Block& block, int64_t third = 0)
      : data(view.at<T>(block.batch, (third * size.heads + block.head) * size.width, block.first)),
        stride_channel(view.stride_channel),
        stride_pixel(view.stride_pixel) {}
  bool planar() const { return stride_pixel == 1; }
};

// Of a multiple of kStep values.
template <typename A>
inline A sum_of_squares(const A* row, int64_t count) {
  using R = Register<A>;
  constexpr int kChains = 4;
  typename R::Vector sum[kChains] = {};
  for (int64_t p = 0; p < count; p += kChains * R::kCount) {
    for (int i = 0; i < kChains; ++i) {
      const typename R::Vector x = R::load(row + p + i * R::kCount);
      sum[i] += x * x;
    }
  }
  const typename R::Vector total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  return sum_of<A>(total);
}

// Channels-last: a step of pixels at a time, whose channels share cache lines. body(channel, pixel) for each of
// `count`.
template <typename Body>
inline void across_channels(int64_t width, int64_t count, const Body& body) {
  for (int64_t first = 0; first < count; first += kStep) {
    const int64_t end = std::min(first + kStep, count);
    for (int64_t c = 0; c < width; ++c) {
      for (int64_t p = first; p < end; ++p) body(c, p);
    }
  }
}

// Brings a block into scratch, rows `pitch` apart, zeros behind the last pixel; adds the squares of each row's values
// to squares[row] where asked.
template <typename T, typename A>
void gather(const Rows<const T>& rows, const Block& block, int64_t width, A* target, int64_t pitch,
            double* squares = nullptr) {
  if (!rows.planar()) {
    across_channels(width, block.count, [&](int64_t c, int64_t p) {
      target[c * pitch + p] = load(rows.data + c * rows.stride_channel + p * rows.stride_pixel);
    });
  }
  for (int64_t c = 0; c < width; ++c) {
    A* __restrict row = target + c * pitch;
    if (rows.planar()) {
      const T* __restrict source = rows.data + c * rows.stride_channel;
      if (c + kRowsAhead < width) {
        const T* ahead = source + kRowsAhead * rows.stride_channel;
        for (int64_t p = 0; p < block.count; p += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(ahead + p);
      }
#pragma omp simd
      for (int64_t p = 0; p < block.count; ++p) row[p] = load(source + p);
    }
    for (int64_t p = block.count; p < block.padded; ++p) row[p] = A(0);
    if (squares != nullptr) squares[c] += static_cast<double>(sum_of_squares(row, block.padded));
  }
}

// Writes `count` pixels at `first` of a block from scratch.
template <typename T, typename A>
void scatter(const Rows<T>& rows, int64_t width, int64_t first, int64_t count, const A* source, int64_t pitch) {
  if (!rows.planar()) {
    T* const target = rows.data + first * rows.stride_pixel;
    return across_channels(width, count, [&](int64_t c, int64_t p) {
      store(target + c * rows.stride_channel + p * rows.stride_pixel, source[c * pitch + p]);
    });
  }
  for (int64_t c = 0; c < width; ++c) {
    const A* __restrict row = source + c * pitch;
    T* __restrict target = rows.data + c * rows.stride_channel + first;
#pragma omp simd
    for (int64_t p = 0; p < count; ++p) store(target + p, row[p]);
  }
}

// Z = M x (or with kProject Z = M x - scale * own) over a block, written to `rows`; `spare` holds a panel of results.
template <bool kProject = false, typename T, typename A>
void apply(const A* packed, const A* x, int64_t width, int64_t pitch, const Rows<T>& rows, const Block& block, A* spare,
           const A* scale = nullptr, const A* own = nullptr) {
  for (int64_t p = 0; p < block.count; p += kPanel<A>) {
    const int64_t count = std::min(kPanel<A>, block.count - p);
    const A* also = kProject ? own + p : nullptr;
    if constexpr (std::is_same_v<T, A>) {
      if (rows.planar() && count == kPanel<A>) {
        apply_panel<kProject>(packed, x + p, width, pitch, rows.data + p, rows.stride_channel, scale, also);
        continue;
      }
    }
    apply_panel<kProject>(packed, x + p, width, pitch, spare, kPanel<A>, scale, also);
    scatter(rows, width, p, count, spare, kPanel<A>);
  }
}

}  // namespace
}  // namespace CPL_ISA
}  // namespace cpl
