// How layer_norm2d cuts images up on CUDA: functions of sizes, dtype and alignment alone, so that every sum has the
// same order every time. Multiprocessors are counted as 132, an H200's: a function of the GPU would not do.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "layer_norm2d/op.h"

namespace cpl::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int64_t kProcessors = 132;

inline int64_t cdiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline unsigned grid_size(int64_t blocks) {
  if (blocks > 0x7fffffff) throw std::invalid_argument("layer_norm2d: more than 2^31 - 1 blocks; split the batch");
  return static_cast<unsigned>(blocks);
}

// Planar images of any kind (cuda_planar.h) and channels-last ones (cuda_last.h).
constexpr int kPixels = 64;          // two warps side by side: 256-byte rows of fp32
constexpr int kGroups = 4;           // 256 threads a block
constexpr int kWarps = 8;            // pixels a block holds at once, channels-last
constexpr int64_t kMaxRows = 528;    // persistent blocks: four on each multiprocessor
constexpr int64_t kTilesPerRow = 4;  // below this a row costs more than it saves

inline int64_t tiles(const LayerNorm2dSize& size, int64_t tile) { return size.batch * cdiv(size.pixels, tile); }

inline int64_t persistent_blocks(int64_t tile_count) {
  const int64_t wanted = cdiv(tile_count, kTilesPerRow);
  return wanted < 1 ? 1 : wanted < kMaxRows ? wanted : kMaxRows;
}

// Tiles (cuda_tile.h): a warp's lanes are 2^lane_bits runs of pixels by 32 / 2^lane_bits channels, and each thread has
// every so many-th channel, per_thread at the most.
struct Tiling {
  int lane_bits;
  int warps;
  int per_thread;  // 0: the image does not fit, cuda_planar.h serves it
  int tile;        // pixels of a block
  unsigned tiles_per_image;
  unsigned tiles;
};

constexpr int kRun = 4;             // pixels of a run where rows are aligned; else 1
constexpr int kMaxTile = 64;        // pixels: rows of 128 bytes
constexpr int64_t kWarpsLiked = 8;  // of a block; more of them wait for one another, narrower rows cost less
constexpr int64_t kTilesWanted = 3 * kProcessors;  // narrower rows give more blocks where images are small
constexpr int64_t kWarpsWanted = 16 * kProcessors;

// Channels of a thread: at the most, and half and a quarter of that. Twelve divide the widths of a U-Net of 48 channels
// and leave what a tile costs besides to 48 elements; backward, registers have room for 64 bytes of each image. Where
// rows are not aligned, a thread has single pixels of 8 channels.
constexpr int most_channels(int element, bool backward) { return !backward ? 12 : element == 4 ? 4 : 8; }
constexpr int kAlone = 8;

// Warps of a block at the most: two such blocks find registers on a multiprocessor.
constexpr int max_warps(int per_thread, bool backward) { return per_thread > (backward ? 4 : 8) ? 10 : 12; }
template <int K, bool kBackward>
constexpr int kMaxWarps = max_warps(K, kBackward);  // for the device

// The tiles of images of `element` bytes.
inline Tiling tiling(const LayerNorm2dSize& size, int element, bool aligned, bool backward) {
  Tiling t{};
  const int run = aligned ? kRun : 1, most = aligned ? most_channels(element, backward) : kAlone;
  const auto warps = [&](int per) { return cdiv(size.channels << t.lane_bits, int64_t{kWarp} * per); };
  const auto count = [&] { return size.batch * cdiv(size.pixels, int64_t{run} << t.lane_bits); };
  // From rows of 128 bytes or a warp's width down to 32 bytes, a sector.
  const auto row = [&] { return element * run << t.lane_bits; };
  t.lane_bits = 5;
  while (row() > 128) --t.lane_bits;
  const int widest = t.lane_bits;
  while (row() > 32 && count() < kTilesWanted) --t.lane_bits;
  if (t.lane_bits == widest && warps(most) > kWarpsLiked) --t.lane_bits;
  while (t.lane_bits > 0 && warps(most) > max_warps(most, backward)) --t.lane_bits;
  if (warps(most) > max_warps(most, backward)) return t;
  t.per_thread = most;
  // Fewer channels a thread, and so more warps, where the GPU is not full otherwise.
  while (aligned && t.per_thread > (backward ? 2 : 3) && count() * warps(t.per_thread) < kWarpsWanted) {
    if (warps(t.per_thread / 2) > max_warps(t.per_thread / 2, backward)) break;
    t.per_thread /= 2;
  }
  t.warps = static_cast<int>(warps(t.per_thread));
  t.tile = run << t.lane_bits;
  t.tiles_per_image = grid_size(cdiv(size.pixels, t.tile));
  t.tiles = grid_size(count());
  return t;
}

// Persistent blocks of a backward over tiles: as many as registers leave room for at once.
inline int64_t tile_rows(const Tiling& t) {
  if (t.per_thread == 0) return 0;
  const int resident = t.per_thread == 8 ? 21 : t.per_thread == 4 ? 25 : 36;  // warps; of 96, 80 and 56 registers
  const int64_t most = resident / t.warps * kProcessors;
  return t.tiles < most ? t.tiles : most;
}

}  // namespace
}  // namespace cpl::cuda
