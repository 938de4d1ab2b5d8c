// How layer_norm2d divides its work on CPU: tiles of pixels, and chunks of tiles for the sums over all pixels.
// All of it depends on the size alone, never on the thread count: the same bits at any number of threads.
#pragma once

#include "common/parallel.h"
#include "layer_norm2d/op.h"

namespace cpl {
namespace CPL_ISA {
namespace {

constexpr int64_t kMaxChunks = 64;  // rows of dweight partial sums; fixed, so is their order
constexpr int64_t kFlush = 64;      // terms summed in fp32 before going to fp64

struct Tile {
  int64_t batch;
  int64_t pixel;  // the first
  int64_t count;
};

Tile tile_at(const LayerNorm2dSize& size, int64_t tile, int64_t index) {
  const int64_t per_image = (size.pixels + tile - 1) / tile;
  const int64_t pixel = index % per_image * tile;
  return {index / per_image, pixel, pixel + tile <= size.pixels ? tile : size.pixels - pixel};
}

int64_t tile_count(const LayerNorm2dSize& size, int64_t tile) { return size.batch * ((size.pixels + tile - 1) / tile); }

template <typename A>
A* offset(const void* statistics, const LayerNorm2dSize& size, const Tile& t) {
  return static_cast<A*>(const_cast<void*>(statistics)) + t.batch * size.pixels + t.pixel;
}

// The backward leaves one row of dweight and dbias a chunk, in fp64: a chunk is a fixed run of tiles, whichever
// thread takes it. body(first, end, row [2, C], scratch) sums the tiles from `first` to `end`.
template <typename A, typename Body>
void in_chunks(const LayerNorm2dBackward& args, int threads, int64_t tiles, size_t scratch_bytes, const Body& body) {
  const int64_t channels = args.size.channels, chunks = tiles < kMaxChunks ? tiles : kMaxChunks;
  const Scratch partial(sizeof(double) * static_cast<size_t>(2 * chunks * channels));
  double* const rows = reinterpret_cast<double*>(partial.data());
  for (int64_t i = 0; i < 2 * chunks * channels; ++i) rows[i] = 0;
  parallel_for(chunks, threads, scratch_bytes, [&](int64_t chunk, char* scratch) {
    body(tiles * chunk / chunks, tiles * (chunk + 1) / chunks, rows + 2 * chunk * channels,
         reinterpret_cast<A*>(scratch));
  });
  for (int64_t c = 0; c < channels; ++c) {
    double dweight = 0, dbias = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      dweight += rows[2 * chunk * channels + c];
      dbias += rows[2 * chunk * channels + channels + c];
    }
    static_cast<A*>(args.dweight)[c] = static_cast<A>(dweight);
    static_cast<A*>(args.dbias)[c] = static_cast<A>(dbias);
  }
}

}  // namespace
}  // namespace CPL_ISA
}  // namespace cpl
