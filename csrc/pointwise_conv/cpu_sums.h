// The weight's gradient: the sums of products of two images' channels over all pixels.
//
//   result[r, c] = sum over b, p of left[b, r, p] * right[b, c, p]
//
// The pixels are cut into parts, whose sums are added up in order at the end, and a part into runs. Of a run the right
// channels are packed, pixel by pixel, one run ahead; the left ones are read where they lie.
#pragma once

#include <algorithm>

#include "pointwise_conv/cpu_product.h"

namespace cpl {
namespace CPL_ISA {

struct Correlation {
  const ImageView& left;
  const ImageView& right;
  int64_t batch, rows, columns, pixels;
};

// Where the sums of a block go: beside those that are there, or in place of what is there.
template <typename A>
struct Adding {
  A* to;
  int64_t stride;
  bool first;

  template <int kRows, int kVectors>
  void operator()(const Sums<A, kRows, kVectors>& sums) const {
    using Reg = Register<A>;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        A* const at = to + r * stride + v * Reg::kCount;
        Reg::set(at, first ? sums.of[r][v] : Reg::load(at) + sums.of[r][v]);
      }
    }
  }
};

template <typename T, typename A>
class Correlator {
 public:
  Correlator(const Correlation& args, A* result, int64_t stride_row, int64_t stride_column, int threads)
      : args_(args), result_(result), stride_row_(stride_row), stride_column_(stride_column), threads_(threads) {
    constexpr int64_t kPartBytes = 16 << 20, kMostParts = 16, kRunsOfPart = 8;
    width_ = Reg::round_up(args.columns);
    blocks_ = divide_up(args.rows, kBlockRows);
    runs_of_image_ = divide_up(args.pixels, kRun);
    runs_ = args.batch * runs_of_image_;
    // How many parts there are depends on the shape alone, and so do the results' bits.
    const int64_t bytes = args.rows * width_ * static_cast<int64_t>(sizeof(A));
    parts_ = std::max<int64_t>(1, std::min({kMostParts, kPartBytes / bytes, divide_up(runs_, kRunsOfPart)}));
    groups_ = groups_of(blocks_, parts_, threads);
  }

  void run() const {
    const bool direct = parts_ == 1 && stride_row_ == width_ && stride_column_ == 1;
    const Scratch memory(direct ? 0 : static_cast<size_t>(parts_ * args_.rows * width_) * sizeof(A));
    A* const sums = direct ? result_ : reinterpret_cast<A*>(memory.data());
    const int64_t elements = Packed::elements(args_.columns, std::min(kRun, args_.pixels));
    constexpr int64_t kCopied = std::is_same_v<T, A> ? 0 : kBlockRows * kRun;
    parallel_for(parts_ * groups_, threads_, static_cast<size_t>(elements + kCopied) * sizeof(A),
                 [&](int64_t item, char* scratch) {
                   A* const own = reinterpret_cast<A*>(scratch);
                   Packed packed(own, elements);
                   const int64_t part = item / groups_;
                   const int64_t first = runs_ * part / parts_, end = runs_ * (part + 1) / parts_;
                   packed.pack(tile(first));
                   for (int64_t run = first; run < end; ++run) {
                     const Adding<A> total{sums + part * args_.rows * width_, width_, run == first};
                     one_run(run, item % groups_, run + 1 < end, total, packed, own + elements);
                     packed.turn_over();
                   }
                 });
    if (!direct) add_up(sums);
  }

 private:
  using Reg = Register<A>;
  using Packed = PackedAhead<ChannelPanels, T, A>;
  static constexpr int64_t kRun = 256;  // pixels that are summed one after another

  Tile<T> tile(int64_t run) const {
    const int64_t pixel = run % runs_of_image_ * kRun;
    return {args_.right.at<const T>(run / runs_of_image_, 0, pixel), args_.right.stride_channel, args_.columns,
            std::min(kRun, args_.pixels - pixel)};
  }

  void one_run(int64_t run, int64_t group, bool ahead, const Adding<A>& total, Packed& packed, A* copies) const {
    const int64_t b = run / runs_of_image_, pixel = run % runs_of_image_ * kRun, pixels = tile(run).pixels;
    const int64_t first = blocks_ * group / groups_, end = blocks_ * (group + 1) / groups_;
    const int64_t stride = args_.left.stride_channel, size = static_cast<int64_t>(sizeof(T));
    if (ahead) packed.look_at(tile(run + 1), end - first);
    for (int64_t block = first; block < end; ++block) {
      const int64_t row = block * kBlockRows, rows = std::min<int64_t>(kBlockRows, args_.rows - row);
      const int64_t after = std::min<int64_t>(kBlockRows, args_.rows - row - rows);
      Fetching fetching(args_.left.at<const T>(b, row + rows, pixel), stride * size, pixels * size, after);
      if (ahead) packed.step().all();
      const T* const from = args_.left.at<const T>(b, row, pixel);
      Left<A> left{nullptr, kRun, 1};
      if constexpr (std::is_same_v<T, A>) {
        left = {from, stride, 1};
      } else {
        for (int64_t r = 0; r < rows; ++r) copy_row(from + r * stride, pixels, copies + r * kRun);
        left.data = copies;
      }
      for (int64_t c = 0; c < args_.columns; c += kPanel<A>) {
        const int64_t vectors = divide_up(std::min(kPanel<A>, args_.columns - c), Reg::kCount);
        block_of<A>(rows, vectors, left, packed.panels() + c * pixels, pixels, fetching,
                    Adding<A>{total.to + row * width_ + c, width_, total.first});
        fetching = Fetching();
      }
    }
  }

  // The parts' sums, in order; in squares, as the result may be turned.
  void add_up(const A* sums) const {
    constexpr int64_t kSide = 16;
    parallel_for(divide_up(args_.rows, kSide), threads_, 0, [&](int64_t i, char*) {
      const int64_t end = std::min((i + 1) * kSide, args_.rows);
      for (int64_t first = 0; first < args_.columns; first += kSide) {
        for (int64_t r = i * kSide; r < end; ++r) {
          for (int64_t c = first; c < std::min(first + kSide, args_.columns); ++c) {
            double sum = static_cast<double>(sums[r * width_ + c]);
            for (int64_t part = 1; part < parts_; ++part) sum += sums[(part * args_.rows + r) * width_ + c];
            result_[r * stride_row_ + c * stride_column_] = static_cast<A>(sum);
          }
        }
      }
    });
  }

  const Correlation args_;
  A* result_;
  int64_t stride_row_, stride_column_;
  int threads_;
  int64_t width_, blocks_, runs_of_image_, runs_, parts_, groups_;
};

// The sum of each channel over all pixels.
template <typename T, typename A>
void sum_channels(const ImageView& image, int64_t batch, int64_t channels, int64_t pixels, A* sums, int threads) {
  constexpr int64_t kRun = 256;
  parallel_for(channels, threads, 0, [&](int64_t c, char*) {
    double sum = 0;
    for (int64_t b = 0; b < batch; ++b) {
      const T* const row = image.at<const T>(b, c, 0);
      for (int64_t first = 0; first < pixels; first += kRun) {
        const int64_t end = std::min(first + kRun, pixels);
        double part = 0;
        for (int64_t p = first; p < end; ++p) part += static_cast<double>(load(row + p));
        sum += part;
      }
    }
    sums[c] = static_cast<A>(sum);
  });
}

}  // namespace CPL_ISA
}  // namespace cpl
