// y = W x + bias + residual: a work item packs a tile of pixels of all channels into the cache, and multiplies it by
// all rows of the weight. Packing goes one tile ahead of multiplying.
#pragma once

#include <algorithm>

#include "common/pages.h"
#include "common/parallel.h"
#include "pointwise_conv/cpu_pack.h"
#include "pointwise_conv/op.h"

namespace cpl {
namespace CPL_ISA {

inline int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

// In how many groups to divide so many blocks of rows, so that all threads have work. Each group packs the tile anew.
inline int64_t groups_of(int64_t blocks, int64_t items, int threads) {
  constexpr int64_t kItemsPerThread = 4, kLeastBlocks = 8;
  const int64_t wanted = divide_up(kItemsPerThread * threads, std::max<int64_t>(items, 1));
  return threads == 1 ? 1 : std::max<int64_t>(1, std::min(wanted, blocks / kLeastBlocks));
}

// Where a block of rows x `pixels` goes, and what is added to it.
template <typename A>
struct Target {
  A* y;
  const A* residual;  // or null
  const A* bias;      // of the first row, or null
  int64_t stride, residual_stride, pixels;

  void fetch(int64_t rows) const {
    for (int64_t r = 0; r < rows; ++r) fetch_to_write(y + r * stride, pixels);
  }
  template <int kRows, int kVectors>
  void operator()(const Sums<A, kRows, kVectors>& sums) const {
    constexpr int64_t kWhole = kVectors * Reg::kCount;
    if (pixels == kWhole) {
      put<kRows, kVectors>(sums, 0);
    } else {
      put<kRows, kVectors - 1>(sums, pixels - (kWhole - Reg::kCount));
    }
  }

 private:
  using Reg = Register<A>;
  using Vector = typename Reg::Vector;

  // So many registers, and `rest` numbers of one more.
  template <int kRows, int kWhole, int kVectors>
  void put(const Sums<A, kRows, kVectors>& sums, int64_t rest) const {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      A* const to = y + r * stride;
      const A* const more = residual == nullptr ? nullptr : residual + r * residual_stride;
      const Vector offset = (bias == nullptr ? A(0) : bias[r]) - Vector{};
#pragma GCC unroll 8
      for (int v = 0; v < kWhole; ++v) {
        const Vector sum = sums.of[r][v] + offset;
        Reg::set(to + v * Reg::kCount, residual == nullptr ? sum : sum + Reg::load(more + v * Reg::kCount));
      }
      if (rest != 0) {
        constexpr int64_t kDone = kWhole * Reg::kCount;
        const Vector sum = sums.of[r][kVectors - 1] + offset;
        Reg::narrow_few(to + kDone, residual == nullptr ? sum : sum + Reg::widen_few(more + kDone, rest), rest);
      }
    }
  }
};

// The weight by blocks of rows: read where it lies, or, where the rows of a turned one lie far apart, put side by side.
template <typename A>
class Weight {
 public:
  Weight(const PointwiseConvForward& args, int threads)
      : data_(static_cast<const A*>(args.weight)),
        stride_(args.weight_stride_out),
        turned_(args.weight_stride_in != 1),
        in_(args.size.in),
        copy_(turned_ ? static_cast<size_t>(divide_up(args.size.out, kBlockRows) * kBlockRows * in_) * sizeof(A) : 0) {
    if (!turned_) return;
    A* const copy = reinterpret_cast<A*>(copy_.data());
    parallel_for(divide_up(args.size.out, kBlockRows), threads, 0, [&](int64_t block, char*) {
      const int64_t row = block * kBlockRows, rows = std::min<int64_t>(kBlockRows, args.size.out - row);
      for (int64_t k = 0; k < in_; ++k) {
        const A* const from = data_ + row * stride_ + k * args.weight_stride_in;
        for (int64_t r = 0; r < rows; ++r) copy[(block * in_ + k) * kBlockRows + r] = from[r * stride_];
      }
    });
  }
  Left<A> rows(int64_t block) const {
    if (!turned_) return {data_ + block * kBlockRows * stride_, stride_, 1};
    return {reinterpret_cast<const A*>(copy_.data()) + block * in_ * kBlockRows, 1, kBlockRows};
  }

 private:
  const A* data_;
  int64_t stride_;
  bool turned_;
  int64_t in_;
  Scratch copy_;
};

template <typename T, typename A>
class Product {
 public:
  Product(const PointwiseConvForward& args, int threads) : args_(args), weight_(args, threads), threads_(threads) {
    constexpr int64_t kTileBytes = 192 << 10;  // of a packed tile: within a core's second cache
    const int64_t panel_bytes = args.size.in * kPanel<A> * static_cast<int64_t>(sizeof(A));
    tile_ = std::max<int64_t>(kTileBytes / panel_bytes, 1) * kPanel<A>;
    tiles_ = divide_up(args.size.pixels, tile_);
    blocks_ = divide_up(args.size.out, kBlockRows);
    groups_ = groups_of(blocks_, args.size.batch * tiles_, threads);
  }

  void run() const {
    if (args_.y.stride_channel == args_.size.pixels) {
      prefer_huge_pages(args_.y.data,
                        static_cast<size_t>(args_.size.batch * args_.size.out * args_.size.pixels) * sizeof(T));
    }
    // A span of neighbouring items is one thread's.
    const int64_t items = args_.size.batch * tiles_ * groups_;
    const int64_t spans = groups_ == 1 ? std::min<int64_t>(items, threads_) : items;
    const int64_t elements = Packed::elements(args_.size.in, std::min(tile_, args_.size.pixels));
    parallel_for(spans, threads_, static_cast<size_t>(elements) * sizeof(A), [&](int64_t span, char* memory) {
      Packed packed(reinterpret_cast<A*>(memory), elements);
      const int64_t first = items * span / spans, end = items * (span + 1) / spans;
      packed.pack(tile(first));
      for (int64_t item = first; item < end; ++item) {
        multiply(item, packed, item + 1 < end);
        packed.turn_over();
      }
    });
  }

 private:
  using Reg = Register<A>;
  using Packed = PackedAhead<PixelPanels, T, A>;

  int64_t image(int64_t item) const { return item / groups_ / tiles_; }
  int64_t pixel(int64_t item) const { return item / groups_ % tiles_ * tile_; }
  Tile<T> tile(int64_t item) const {
    const int64_t first = pixel(item);
    return {args_.x.at<const T>(image(item), 0, first), args_.x.stride_channel, args_.size.in,
            std::min(tile_, args_.size.pixels - first)};
  }

  void multiply(int64_t item, Packed& packed, bool ahead) const {
    const int64_t group = item % groups_, pixels = tile(item).pixels;
    const int64_t first = blocks_ * group / groups_, end = blocks_ * (group + 1) / groups_;
    if (ahead) packed.look_at(tile(item + 1), (end - first) * divide_up(pixels, kPanel<A>));
    for (int64_t block = first; block < end; ++block) {
      const Left<A> left = weight_.rows(block);
      const int64_t row = block * kBlockRows, rows = std::min<int64_t>(kBlockRows, args_.size.out - row);
      for (int64_t p = 0; p < pixels; p += kPanel<A>) {
        const int64_t count = std::min(kPanel<A>, pixels - p);
        one_block(left, packed, image(item), row, rows, pixel(item) + p, count, p, ahead);
      }
    }
  }

  void one_block(const Left<A>& left, Packed& packed, int64_t b, int64_t row, int64_t rows, int64_t pixel,
                 int64_t count, int64_t in_tile, bool ahead) const {
    const A* const bias = args_.bias == nullptr ? nullptr : static_cast<const A*>(args_.bias) + row;
    const A* const panel = packed.panels() + in_tile * args_.size.in;
    const int64_t vectors = divide_up(count, Reg::kCount);
    T* const y = args_.y.at<T>(b, row, pixel);
    const T* const residual = args_.residual.data == nullptr ? nullptr : args_.residual.at<const T>(b, row, pixel);
    const Fetching fetching = ahead ? packed.step() : Fetching();
    if constexpr (std::is_same_v<T, A>) {
      const Target<A> target{y, residual, bias, args_.y.stride_channel, args_.residual.stride_channel, count};
      target.fetch(rows);
      block_of<A>(rows, vectors, left, panel, args_.size.in, fetching, target);
    } else {
      A wide[kBlockRows * kPanel<A>], more[kBlockRows * kPanel<A>];
      for (int64_t r = 0; residual != nullptr && r < rows; ++r) {
        copy_row(residual + r * args_.residual.stride_channel, count, more + r * kPanel<A>);
      }
      const A* const added = residual == nullptr ? nullptr : more;
      block_of<A>(rows, vectors, left, panel, args_.size.in, fetching,
                  Target<A>{wide, added, bias, kPanel<A>, kPanel<A>, count});
      for (int64_t r = 0; r < rows; ++r) write_row(wide + r * kPanel<A>, count, y + r * args_.y.stride_channel);
    }
  }

  const PointwiseConvForward& args_;
  Weight<A> weight_;
  int threads_;
  int64_t tile_, tiles_, blocks_, groups_;
};

}  // namespace CPL_ISA
}  // namespace cpl
