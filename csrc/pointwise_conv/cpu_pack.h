// What blocks read: a tile of an image, of all its channels, in panels that lie in the cache one behind the other.
//
// In the image a tile's channels lie a power of two apart, more often than not: their lines share a few sets of a
// cache, and each is on a memory page of its own. So a tile cannot be fetched ahead as a whole, as its lines would
// drive each other out again. It is packed ahead, a few channels at a time, while the tile before it is multiplied.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "pointwise_conv/cpu_block.h"

namespace cpl {
namespace CPL_ISA {

// Some pixels of all channels.
template <typename T>
struct Tile {
  const T* image;
  int64_t stride_channel, channels, pixels;

  const T* channel(int64_t c) const { return image + c * stride_channel; }
};

// Asks for the lines of the cache that `count` neighbours are to be written to.
template <typename T>
inline void fetch_to_write(const T* from, int64_t count) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  for (int64_t i = 0; i < count; i += kLine) __builtin_prefetch(from + i, 1, 3);
}

// A row of so many pixels, widened; zeros behind it up to a whole register.
template <typename T, typename A>
inline void copy_row(const T* from, int64_t pixels, A* to) {
  using Reg = Register<A>;
  const int64_t whole = pixels / Reg::kCount * Reg::kCount;
  for (int64_t p = 0; p < whole; p += Reg::kCount) Reg::set(to + p, Reg::widen(from + p));
  if (whole < pixels) Reg::set(to + whole, Reg::widen_few(from + whole, pixels - whole));
}

// So many numbers, rounded to T.
template <typename T, typename A>
inline void write_row(const A* from, int64_t count, T* to) {
  using Reg = Register<A>;
  const int64_t whole = count / Reg::kCount * Reg::kCount;
  for (int64_t p = 0; p < whole; p += Reg::kCount) Reg::narrow(to + p, Reg::load(from + p));
  if (whole < count) Reg::narrow_few(to + whole, Reg::load(from + whole), count - whole);
}

// Panels of pixels: panel s holds, channel by channel, kPanel pixels side by side (the last one fewer registers).
template <typename T, typename A>
struct PixelPanels {
  static constexpr int64_t kUnit = 1;  // channels that are packed together

  static int64_t elements(int64_t channels, int64_t pixels) { return channels * Register<A>::round_up(pixels); }

  static void pack(const Tile<T>& tile, int64_t channel, A* to) {
    for (int64_t first = 0; first < tile.pixels; first += kPanel<A>) {
      const int64_t count = std::min(kPanel<A>, tile.pixels - first);
      copy_row(tile.channel(channel) + first, count,
               to + first * tile.channels + channel * Register<A>::round_up(count));
    }
  }
};

// Panels of channels: panel s holds, pixel by pixel, kPanel channels side by side. The last panel has fewer registers,
// and its last register is filled up with zeros.
template <typename T, typename A>
struct ChannelPanels {
  static constexpr int64_t kUnit = 4;

  static int64_t elements(int64_t channels, int64_t pixels) { return pixels * Register<A>::round_up(channels); }

  static void pack(const Tile<T>& tile, int64_t channel, A* to) {
    const int64_t first = channel / kPanel<A> * kPanel<A>;
    const int64_t width = Register<A>::round_up(std::min(kPanel<A>, tile.channels - first));
    A* const panel = to + first * tile.pixels + channel - first;
    int64_t c = channel;
    if (channel + kUnit <= tile.channels) turn(tile, channel, panel, width), c += kUnit;
    if (c < tile.channels && c > channel) return;  // others follow
    for (; c < first + width; ++c) {
      for (int64_t p = 0; p < tile.pixels; ++p) {
        panel[p * width + c - channel] = c < tile.channels ? static_cast<A>(load(tile.channel(c) + p)) : A(0);
      }
    }
  }

 private:
  typedef A Four __attribute__((vector_size(kUnit * sizeof(A))));
  using Index = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
  typedef Index Order __attribute__((vector_size(kUnit * sizeof(A))));

  // Four channels, which come to stand side by side.
  static void turn(const Tile<T>& tile, int64_t channel, A* to, int64_t width) {
    const T* const rows[kUnit] = {tile.channel(channel), tile.channel(channel + 1), tile.channel(channel + 2),
                                  tile.channel(channel + 3)};
    constexpr Order kLow = {0, 4, 1, 5}, kHigh = {2, 6, 3, 7}, kFront = {0, 1, 4, 5}, kBack = {2, 3, 6, 7};
    int64_t p = 0;
    for (; p + kUnit <= tile.pixels; p += kUnit) {
      const Four a = four(rows[0] + p), b = four(rows[1] + p), c = four(rows[2] + p), d = four(rows[3] + p);
      const Four ab0 = __builtin_shuffle(a, b, kLow), ab1 = __builtin_shuffle(a, b, kHigh);
      const Four cd0 = __builtin_shuffle(c, d, kLow), cd1 = __builtin_shuffle(c, d, kHigh);
      const Four turned[kUnit] = {__builtin_shuffle(ab0, cd0, kFront), __builtin_shuffle(ab0, cd0, kBack),
                                  __builtin_shuffle(ab1, cd1, kFront), __builtin_shuffle(ab1, cd1, kBack)};
      for (int i = 0; i < kUnit; ++i) memcpy(to + (p + i) * width, &turned[i], sizeof(Four));
    }
    for (; p < tile.pixels; ++p) {
      for (int i = 0; i < kUnit; ++i) to[p * width + i] = static_cast<A>(load(rows[i] + p));
    }
  }
  static Four four(const T* from) {
    Four values;
    if constexpr (std::is_same_v<T, A>) {
      memcpy(&values, from, sizeof values);
    } else {
      for (int i = 0; i < kUnit; ++i) values[i] = static_cast<A>(load(from + i));
    }
    return values;
  }
};

// Two tiles' panels: those that are multiplied now, and the next ones, which are packed meanwhile.
template <template <typename, typename> class Panels, typename T, typename A>
class PackedAhead {
  using Packing = Panels<T, A>;

 public:
  static int64_t elements(int64_t channels, int64_t pixels) {
    return 2 * Register<A>::round_up(Packing::elements(channels, pixels));
  }
  PackedAhead(A* memory, int64_t elements) : now_(memory), next_(memory + elements / 2) {}

  const A* panels() const { return now_; }
  void pack(const Tile<T>& tile) {
    for (int64_t c = 0; c < tile.channels; c += Packing::kUnit) Packing::pack(tile, c, now_);
  }
  // From now on `steps` calls of step() pack this tile.
  void look_at(const Tile<T>& next, int64_t steps) {
    const int64_t units = (next.channels + Packing::kUnit - 1) / Packing::kUnit;
    tile_ = next, steps_ = steps, whole_ = units / steps, rest_ = units % steps;
    owed_ = units_ = end_ = 0;
    after_ = more();
    lines(0, after_).all();
  }
  // Packs the next few channels; what comes after them is to be fetched meanwhile.
  Fetching step() {
    const int64_t first = end_;
    end_ = after_;
    for (int64_t c = first; c < end_; c += Packing::kUnit) Packing::pack(tile_, c, next_);
    after_ = more();
    return after_ == end_ ? Fetching() : lines(end_, after_);
  }
  void turn_over() { std::swap(now_, next_); }

 private:
  // Where the next step ends: after `steps_` of them all channels are through. Without a division.
  int64_t more() {
    units_ += whole_, owed_ += rest_;
    if (owed_ >= steps_) owed_ -= steps_, ++units_;
    return std::min(units_ * Packing::kUnit, tile_.channels);
  }
  Fetching lines(int64_t first, int64_t end) const {
    const int64_t size = static_cast<int64_t>(sizeof(T));
    return {tile_.channel(first), tile_.stride_channel * size, tile_.pixels * size,
            std::min(end, tile_.channels) - std::min(first, tile_.channels)};
  }

  A *now_, *next_;
  Tile<T> tile_ = {};
  int64_t steps_ = 1, whole_ = 0, rest_ = 0, owed_ = 0, units_ = 0;
  int64_t end_ = 0, after_ = 0;  // channels that are packed, and fetched
};

}  // namespace CPL_ISA
}  // namespace cpl
