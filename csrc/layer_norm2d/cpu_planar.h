// layer_norm2d on planar images (NCHW).
//
// An image is read once from memory: a block of neighbouring pixels, all channels, is gathered into a dense
// scratch buffer that stays in cache for the second look that the variance and the output need, with the sums
// over channels in registers. (Looking twice at the image itself does not do: the planes of a 128x128 image are
// 64 KiB apart, so all channels of a pixel fall into the same cache sets and push each other out.) What bounds it
// is memory: rows of a block are fetched ahead, and results larger than the last-level cache are written past it.
#pragma once

#include <type_traits>

#include "common/lanes.h"
#include "common/stream.h"
#include "layer_norm2d/cpu_tiles.h"
#include "layer_norm2d/math.h"

namespace cpl {
namespace CPL_ISA {
namespace {

// Vectors of a block of pixels. Long runs (512 bytes of fp32) keep the memory busy; where the image is too small to
// give every thread several of them, or so deep that they would leave the L2 cache, shorter ones.
constexpr int kLong = 8, kShort = 4;
constexpr int64_t kBlocksWanted = 128;
constexpr size_t kScratchBytes = size_t{1} << 19;
constexpr int64_t kRowsAhead = 3;                  // fetched ahead; 2 to 4 measured alike, 0 and from 6 on slower
constexpr size_t kStreamBytes = size_t{24} << 20;  // the least result that is written past the caches

// Whether a block is long; depends on the size alone, never on the thread count: same blocks, same bits.
template <typename A>
bool long_blocks(const LayerNorm2dSize& size, int64_t planes) {
  const int64_t pixels = kLong * Lanes<A>::kCount;
  return tile_count(size, pixels) >= kBlocksWanted &&
         sizeof(A) * static_cast<size_t>(pixels * size.channels * planes) <= kScratchBytes;
}

template <typename T>
bool streams(const ImageView& view, const LayerNorm2dSize& size) {
  constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(T));
  return std::is_same_v<T, typename Arithmetic<T>::type> && reinterpret_cast<uintptr_t>(view.data) % 64 == 0 &&
         view.stride_channel % line == 0 && view.stride_batch % line == 0 &&
         is_streamed(sizeof(T) * static_cast<size_t>(size.batch * size.channels * size.pixels), kStreamBytes);
}

// The first `count` lanes of a result; any count, also beyond the lanes or negative.
template <typename T, typename Vector>
void scatter(T* target, const Vector& value, int64_t count, bool stream) {
  using L = Lanes<typename Arithmetic<T>::type>;
  if constexpr (std::is_same_v<T, typename Arithmetic<T>::type>) {
    static_assert(sizeof(Vector) == kStreamLine);
    if (stream && count >= L::kCount) return stream_line(target, &value);
  }
  L::narrow(target, value, count);
}

// A block of kVectors vectors of pixels, `count` of which are real.
template <typename T, typename A, int kVectors>
struct Block {
  using L = Lanes<A>;
  static constexpr int64_t kPixels = kVectors * L::kCount;

  // A channel's pixels, zeros behind the last.
  static void gather(const ImageView& view, const Tile& t, int64_t channel, int64_t channels, A* __restrict row) {
    const T* source = view.at<const T>(t.batch, channel, t.pixel);
    if (t.count < kPixels) {
      for (int64_t p = 0; p < kPixels; ++p) row[p] = p < t.count ? load(source + p) : A(0);
      return;
    }
    if (channel + kRowsAhead < channels) {
      const T* ahead = view.at<const T>(t.batch, channel + kRowsAhead, t.pixel);
      for (int64_t p = 0; p < kPixels; p += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(ahead + p);
    }
    for (int i = 0; i < kVectors; ++i) L::set(row + i * L::kCount, L::widen(source + i * L::kCount));
  }
};

// y of a block whose x is in the scratch buffer; `args`: of the forward, or of a backward that is to give y along.
template <typename T, typename A, int kVectors, typename Args>
__attribute__((always_inline)) inline void output_planar_block(const Args& args, const Tile& t, bool stream,
                                                               const A* __restrict buffer,
                                                               const typename Lanes<A>::Vector* mean, const A* rstd) {
  using B = Block<T, A, kVectors>;
  using L = Lanes<A>;
  using Vector = typename L::Vector;
  const A* weight = static_cast<const A*>(args.weight);
  const A* bias = static_cast<const A*>(args.bias);
  for (int64_t c = 0; c < args.size.channels; ++c) {
    T* y = args.y.template at<T>(t.batch, c, t.pixel);
    const A b = bias != nullptr ? bias[c] : A(0);
    for (int i = 0; i < kVectors; ++i) {
      const Vector x = L::load(buffer + c * B::kPixels + i * L::kCount);
      const Vector scaled = layer_norm_scaled(x, mean[i], L::load(rstd + i * L::kCount), args.center);
      scatter(y + i * L::kCount, scaled * weight[c] + b, t.count - i * L::kCount, stream);
    }
  }
  if (stream) stream_fence();
}

template <typename T, typename A, int kVectors>
void forward_planar_block(const LayerNorm2dForward& args, const Tile& t, bool stream, A* __restrict buffer) {
  using B = Block<T, A, kVectors>;
  using L = Lanes<A>;
  using Vector = typename L::Vector;
  const int64_t channels = args.size.channels;
  Vector mean[kVectors] = {}, square[kVectors] = {};
  for (int64_t c = 0; c < channels; ++c) {
    A* row = buffer + c * B::kPixels;
    B::gather(args.x, t, c, channels, row);
    for (int i = 0; i < kVectors; ++i) mean[i] += L::load(row + i * L::kCount);
  }
  const A inverse = A(1) / static_cast<A>(channels);
  for (int i = 0; i < kVectors; ++i) mean[i] *= inverse;
  for (int64_t c = 0; c < channels; ++c) {
    for (int i = 0; i < kVectors; ++i) {
      const Vector centred = L::load(buffer + c * B::kPixels + i * L::kCount) - mean[i];
      square[i] += centred * centred;
    }
  }
  A rstd[B::kPixels];
  memcpy(rstd, square, sizeof rstd);
  const A eps = static_cast<A>(args.eps);
#pragma omp simd
  for (int64_t p = 0; p < B::kPixels; ++p) rstd[p] = layer_norm_rstd(rstd[p] * inverse, eps);
  memcpy(offset<A>(args.mean, args.size, t), mean, sizeof(A) * static_cast<size_t>(t.count));
  memcpy(offset<A>(args.rstd, args.size, t), rstd, sizeof(A) * static_cast<size_t>(t.count));
  output_planar_block<T, A, kVectors>(args, t, stream, buffer, mean, rstd);
}

// dweight and dbias of the blocks of a chunk, each channel's in lanes.
template <typename A>
struct ChannelSums {
  using Vector = typename Lanes<A>::Vector;
  Vector* lanes;  // [C, 2]
  double* total;  // [2, C]
  int64_t channels;

  void clear() const {
    for (int64_t i = 0; i < 2 * channels; ++i) lanes[i] = Vector{};
  }
  void flush() const {
    for (int64_t c = 0; c < channels; ++c) {
      total[c] += Lanes<A>::sum(lanes[2 * c]);
      total[channels + c] += Lanes<A>::sum(lanes[2 * c + 1]);
    }
    clear();
  }
};

// One group of vectors of a block, at `first`: few enough for their sums to stay in registers. Inlined by force: GCC
// otherwise makes a call of it, and the backward is a tenth slower.
template <typename T, typename A, int kVectors, int64_t kBlock>
__attribute__((always_inline)) inline void backward_group(const LayerNorm2dBackward& args, const Tile& t, bool stream,
                                                          int64_t first, const A* x_all, const A* dy_all,
                                                          const ChannelSums<A>& sums) {
  using L = Lanes<A>;
  using Vector = typename L::Vector;
  const int64_t channels = args.size.channels;
  const A* weight = static_cast<const A*>(args.weight);
  const int64_t real = t.count - first;
  A mean_rstd[2][kVectors * L::kCount] = {};
  if (real > 0) {
    const size_t bytes = sizeof(A) * static_cast<size_t>(real < kVectors * L::kCount ? real : kVectors * L::kCount);
    memcpy(mean_rstd[0], offset<A>(args.mean, args.size, t) + first, bytes);
    memcpy(mean_rstd[1], offset<A>(args.rstd, args.size, t) + first, bytes);
  }
  Vector mean[kVectors], rstd[kVectors], lift[kVectors], mean_g[kVectors] = {}, mean_gn[kVectors] = {};
  for (int i = 0; i < kVectors; ++i) {
    mean[i] = L::load(mean_rstd[0] + i * L::kCount);
    rstd[i] = L::load(mean_rstd[1] + i * L::kCount);
    lift[i] = args.center ? Vector{} : mean[i] * rstd[i];  // what weight multiplies is h + lift
  }
  for (int64_t c = 0; c < channels; ++c) {
    const A w = weight[c];
    Vector sum_weight{}, sum_bias{};
    for (int i = 0; i < kVectors; ++i) {
      const int64_t at = c * kBlock + first + i * L::kCount;
      const Vector gradient = L::load(dy_all + at);  // 0 behind the last pixel: h there adds nothing
      const Vector normalised = layer_norm_scaled(L::load(x_all + at), mean[i], rstd[i], true) + lift[i];
      const Vector g = gradient * w;
      mean_g[i] += g;
      mean_gn[i] += g * normalised;
      sum_weight += gradient * normalised;
      sum_bias += gradient;
    }
    sums.lanes[2 * c] += sum_weight;
    sums.lanes[2 * c + 1] += sum_bias;
  }
  const A inverse = A(1) / static_cast<A>(channels);
  for (int i = 0; i < kVectors; ++i) {
    mean_g[i] *= args.center ? inverse : A(0);
    mean_gn[i] *= inverse;
  }
  for (int64_t c = 0; c < channels; ++c) {
    T* dx = args.dx.at<T>(t.batch, c, t.pixel + first);
    const A w = weight[c];
    for (int i = 0; i < kVectors; ++i) {
      const int64_t at = c * kBlock + first + i * L::kCount;
      const Vector h = layer_norm_scaled(L::load(x_all + at), mean[i], rstd[i], true);
      const Vector value = layer_norm_dx(L::load(dy_all + at) * w, h, rstd[i], mean_g[i], mean_gn[i]);
      scatter(dx + i * L::kCount, value, real - i * L::kCount, stream);
    }
  }
}

template <typename T, typename A, int kVectors>
void backward_planar_block(const LayerNorm2dBackward& args, const Tile& t, bool stream, A* __restrict buffer,
                           const ChannelSums<A>& sums) {
  using B = Block<T, A, kVectors>;
  constexpr int kGroup = 4;
  static_assert(kVectors % kGroup == 0);
  const int64_t channels = args.size.channels;
  A* const x_all = buffer;                           // [C, block]
  A* const dy_all = buffer + channels * B::kPixels;  // [C, block]
  for (int64_t c = 0; c < channels; ++c) {
    B::gather(args.x, t, c, channels, x_all + c * B::kPixels);
    B::gather(args.dy, t, c, channels, dy_all + c * B::kPixels);
  }
  for (int64_t first = 0; first < B::kPixels; first += kGroup * Lanes<A>::kCount) {
    backward_group<T, A, kGroup, B::kPixels>(args, t, stream, first, x_all, dy_all, sums);
  }
  if (stream) stream_fence();
  if (args.y.data == nullptr) return;
  typename Lanes<A>::Vector mean[kVectors] = {};
  A rstd[B::kPixels] = {};
  memcpy(mean, offset<A>(args.mean, args.size, t), sizeof(A) * static_cast<size_t>(t.count));
  memcpy(rstd, offset<A>(args.rstd, args.size, t), sizeof(A) * static_cast<size_t>(t.count));
  output_planar_block<T, A, kVectors>(args, t, false, x_all, mean, rstd);  // read again at once: not past the caches
}

template <typename T, typename A, int kVectors>
void forward_planar(const LayerNorm2dForward& args, int threads) {
  constexpr int64_t pixels = Block<T, A, kVectors>::kPixels;
  const bool stream = streams<T>(args.y, args.size);
  parallel_for(tile_count(args.size, pixels), threads, sizeof(A) * static_cast<size_t>(pixels * args.size.channels),
               [&](int64_t i, char* scratch) {
                 const Tile t = tile_at(args.size, pixels, i);
                 forward_planar_block<T, A, kVectors>(args, t, stream, reinterpret_cast<A*>(scratch));
               });
}

template <typename T, typename A, int kVectors>
void backward_planar(const LayerNorm2dBackward& args, int threads) {
  constexpr int64_t pixels = Block<T, A, kVectors>::kPixels;
  const int64_t channels = args.size.channels, elements = 2 * pixels * channels;
  const bool stream = streams<T>(args.dx, args.size);
  const size_t bytes = sizeof(A) * static_cast<size_t>(elements + 2 * Lanes<A>::kCount * channels);
  in_chunks<A>(
      args, threads, tile_count(args.size, pixels), bytes, [&](int64_t first, int64_t end, double* row, A* scratch) {
        const ChannelSums<A> sums{reinterpret_cast<typename Lanes<A>::Vector*>(scratch + elements), row, channels};
        sums.clear();
        for (int64_t i = first; i < end; ++i) {
          backward_planar_block<T, A, kVectors>(args, tile_at(args.size, pixels, i), stream, scratch, sums);
          if ((i - first + 1) % (kFlush / kVectors) == 0) sums.flush();
        }
        sums.flush();
      });
}

}  // namespace
}  // namespace CPL_ISA
}  // namespace cpl
