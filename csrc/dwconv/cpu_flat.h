// Small planes, whole: their rows lie one behind the other with nothing between, so that registers are full however
// narrow a row is.
//
// Tap (i, j) of the output at n reads n + (i - p) * width + (j - p), one offset for all outputs; what it finds beyond
// the end of its row belongs to the next one, and is masked. The mask depends on j alone, so it is laid over the sum of
// a column of the filter. The planes of a few images go together: what is stored is not read at once, and one sum over
// a register's lanes serves them all.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "common/parallel.h"
#include "common/view.h"
#include "dwconv/cpu_convolve.h"

namespace cpl {
namespace CPL_ISA {

template <int kSize, typename A>
class Flat {
 public:
  Flat(int64_t batch, int64_t height, int64_t width)
      : elements_(height * width),
        width_(width),
        registers_(Reg::round_up(elements_) / Reg::kCount),
        images_(std::clamp<int64_t>(batch, 1, kMostRegisters / registers_)),
        masks_(sizeof(A) * static_cast<size_t>(kSize * size())) {
    Bits* mask = reinterpret_cast<Bits*>(masks_.data());
    for (int64_t j = 0; j < kSize; ++j) {
      for (int64_t n = 0, column = j - kSize / 2, last = column + width; n < size(); ++n) {
        *mask++ = n < elements_ && column >= 0 && column < width ? ~Bits{0} : Bits{0};
        if (++column == last) column -= width;
      }
    }
  }

  // Whether planes of this size are done so: few enough numbers for a sum of them in a lane, and rows that would leave
  // much of a register empty. A band (cpu_band.h) reads a row once for several taps, so that with registers of 16 the
  // larger filters gain up to 9 columns only, and 3x3 up to 12; narrower registers gain at any width.
  static bool takes(int64_t height, int64_t width) {
    constexpr int64_t kWidest = Reg::kCount < 16 ? Reg::kCount - 1 : kSize == 3 ? 12 : 9;
    const int64_t elements = width * height;
    return elements > 0 && width <= kWidest && elements <= kMostRegisters * Reg::kCount;
  }

  int64_t images() const { return images_; }  // that go together
  // Elements of a buffer for so many planes, with and without the zeros that a tap reads before and behind each.
  int64_t bordered() const { return border() + images_ * step(); }
  int64_t plain() const { return images_ * size(); }

  // Planes of a channel, from image `first` on to `end`, widened, with zeros behind each up to a whole register.
  template <typename T>
  void fill(A* memory, const ImageView& view, int64_t first, int64_t end, int64_t channel) const {
    for (int64_t b = first; b < end; ++b) fill_plane(memory + (b - first) * size(), view.at<const T>(b, channel, 0));
  }
  template <typename T>
  void fill_bordered(A* memory, const ImageView& view, int64_t first, int64_t end, int64_t channel) const {
    for (int64_t n = 0; n < border(); n += Reg::kCount) Reg::set(memory + n, Vector{});
    A* plane = memory + border();
    for (int64_t b = first; b < end; ++b, plane += step()) {
      fill_plane(plane, view.at<const T>(b, channel, 0));
      for (int64_t n = 0; n < border(); n += Reg::kCount) Reg::set(plane + size() + n, Vector{});
    }
  }

  // `x`: a bordered buffer.
  template <typename T>
  void convolve(const A* x, const Taps<kSize, A>& taps, A bias, const ImageView& view, int64_t first, int64_t end,
                int64_t channel) const {
    const A* plane = x + border();
    for (int64_t b = first; b < end; ++b, plane += step()) {
      T* const target = view.at<T>(b, channel, 0);
      int64_t r = 0;
      for (; r + kWide <= registers_; r += kWide) convolve_block<kWide>(plane, taps, bias, r, target);
      for (; r < registers_; ++r) convolve_block<1>(plane, taps, bias, r, target);
    }
  }

  // The gradients of the filter, tap after tap, and then the bias, over so many images, of a plain x and a bordered dy:
  // dweight[i, j] = sum over n of x[n] * dy[n + (p - i) * width + (p - j)].
  void sum(const A* x, const A* dy, int64_t images, double* sums) const {
    column_groups<0>(x, dy + border(), images, sums);
    Vector bias = {};
    const A* plane = dy + border();
    for (int64_t b = 0; b < images; ++b, plane += step()) {
      for (int64_t n = 0; n < size(); n += Reg::kCount) bias += Reg::load(plane + n);
    }
    sums[kSize * kSize] = Reg::sum(bias);
  }

 private:
  using Reg = Register<A>;
  using Vector = typename Reg::Vector;
  using Bits = std::conditional_t<sizeof(A) == sizeof(uint64_t), uint64_t, uint32_t>;
  typedef Bits BitVector __attribute__((vector_size(kRegisterBytes)));
  static constexpr int64_t kMostRegisters = 32;
  static constexpr int kWide = 4;
  // Columns of the filter at a time: their sums, and what they are multiplied by.
  static constexpr int kMost = (static_cast<int>(kRegisters) - 2) / (kSize + 1);
  static constexpr int kColumns = kMost < 1 ? 1 : kMost < kSize ? kMost : kSize;

  int64_t size() const { return registers_ * Reg::kCount; }
  int64_t step() const { return size() + border(); }
  int64_t border() const { return Reg::round_up(kSize / 2 * (width_ + 1)); }
  template <typename T>
  void fill_plane(A* memory, const T* plane) const {
    const int64_t whole = elements_ / Reg::kCount * Reg::kCount;
    for (int64_t n = 0; n < whole; n += Reg::kCount) Reg::set(memory + n, Reg::widen(plane + n));
    if (whole < elements_) Reg::set(memory + whole, Reg::widen_few(plane + whole, elements_ - whole));
  }
  Vector masked(const Vector& v, int64_t j, int64_t r) const {
    const A* const mask = reinterpret_cast<const A*>(masks_.data()) + (j * registers_ + r) * Reg::kCount;
    return reinterpret_cast<Vector>(reinterpret_cast<BitVector>(v) & reinterpret_cast<BitVector>(Reg::load(mask)));
  }

  template <int kCount, typename T>
  __attribute__((always_inline)) void convolve_block(const A* x, const Taps<kSize, A>& taps, A bias, int64_t r,
                                                     T* target) const {
    Vector out[kCount];
#pragma GCC unroll 16
    for (int v = 0; v < kCount; ++v) out[v] = Vector{} + bias;
    const A* const corner = x + r * Reg::kCount - kSize / 2 * (width_ + 1);
#pragma GCC unroll 1
    for (int j = 0; j < kSize; ++j) {
      const A* const column = taps.columns[j];
      Vector part[kCount];
#pragma GCC unroll 16
      for (int i = 0; i < kSize; ++i) {
#pragma GCC unroll 16
        for (int v = 0; v < kCount; ++v) {
          const Vector product = column[i] * Reg::load(corner + i * width_ + j + v * Reg::kCount);
          part[v] = i == 0 ? product : part[v] + product;
        }
      }
#pragma GCC unroll 16
      for (int v = 0; v < kCount; ++v) out[v] += masked(part[v], j, r + v);
    }
#pragma GCC unroll 16
    for (int v = 0; v < kCount; ++v) {
      const int64_t first = (r + v) * Reg::kCount, left = elements_ - first;
      if (left < Reg::kCount) {
        Reg::narrow_few(target + first, out[v], left);
      } else {
        Reg::narrow(target + first, out[v]);
      }
    }
  }

  template <int kFirst>
  void column_groups(const A* x, const A* dy, int64_t images, double* sums) const {
    if constexpr (kFirst < kSize) {
      constexpr int kCount = kFirst + kColumns < kSize ? kColumns : kSize - kFirst;
      taps<kFirst, kCount>(x, dy, images, sums);
      column_groups<kFirst + kCount>(x, dy, images, sums);
    }
  }
  template <int kFirst, int kCount>
  __attribute__((noinline)) void taps(const A* x, const A* dy, int64_t images, double* sums) const {
    Vector part[kSize][kCount] = {};
    const A* plane = dy + kSize / 2 * (width_ + 1) - kFirst;
    for (int64_t b = 0; b < images; ++b, plane += step()) {
      const A* corner = plane;
      for (int64_t r = 0; r < registers_; ++r, x += Reg::kCount, corner += Reg::kCount) {
        const Vector all = Reg::load(x);
#pragma GCC unroll 16
        for (int j = 0; j < kCount; ++j) {
          const Vector own = masked(all, kSize - 1 - kFirst - j, r);
#pragma GCC unroll 16
          for (int i = 0; i < kSize; ++i) part[i][j] += own * Reg::load(corner - i * width_ - j);
        }
      }
    }
    for (int i = 0; i < kSize; ++i) {
      for (int j = 0; j < kCount; ++j) sums[i * kSize + kFirst + j] = Reg::sum(part[i][j]);
    }
  }

  int64_t elements_, width_, registers_, images_;
  Scratch masks_;
};

}  // namespace CPL_ISA
}  // namespace cpl
