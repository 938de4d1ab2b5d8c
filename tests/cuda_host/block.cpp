// The scheduler: runs the blocks of a grid one after another, and the threads of a block as fibers in an
// order drawn from the seed. A thread runs until it meets others at a barrier or a warp function.
#include "cuda_host/block.h"

#include <sanitizer/asan_interface.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"
#include "scheduler.h"

// What AddressSanitizer's instrumentation says of a global variable (layout fixed by its ABI, version 8).
struct AsanGlobal {
  uintptr_t begin, size, size_with_redzone;
  const char *name, *module;
  uintptr_t has_dynamic_init;
  const struct {
    const char* file;
    int line, column;
  }* location;
  uintptr_t odr_indicator;
};

namespace cuda_host {
namespace {

enum class State { kReady, kAtBarrier, kInWarp, kDone };

struct Thread {
  uint3 index{};
  State state = State::kReady;
  Site site{};             // where it waits
  bool predicate = false;  // what it brought to the barrier
  Lane* lane = nullptr;    // what it brought to its warp
  std::unique_ptr<Fiber> fiber;
};

struct Range {
  char* begin;
  size_t size;
};

struct Block {
  std::vector<std::unique_ptr<Thread>> threads;  // made once, used by every block
  int count = 0;                                 // of them in this launch
  int waiting = 0, done = 0;                     // at the barrier; out of the kernel
  int barrier_result = 0;
  std::vector<int> ready;
  int current = -1;  // whose stack we are on; -1: the scheduler's
  Fiber scheduler;
  uint64_t warp_bits[32][32] = {};  // [warp][lane], what the last meeting brought

  const char* kernel = "";
  void (*body)(void*) = nullptr;
  void* context = nullptr;
  std::unique_ptr<char[]> dynamic_shared;
  size_t dynamic_bytes = 0;
};

Block g_block;
std::map<const void*, size_t> g_dynamic_limits;
// Never destroyed: instrumented modules register before main and the records inside it.
std::vector<AsanGlobal>& globals() {
  static auto* all = new std::vector<AsanGlobal>;
  return *all;
}
std::vector<Range>& shared_ranges() {
  static auto* all = new std::vector<Range>;
  return *all;
}

uint64_t g_seed = 0, g_random = 0;

// SplitMix64 (Steele, Lea, Flood 2014).
uint64_t random_below(uint64_t bound) {
  uint64_t z = (g_random += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return (z ^ (z >> 31)) % bound;
}

// Seed 0 takes the threads upwards, seed 1 downwards: the orders under which most races show. Others shuffle.
int take_ready() {
  std::vector<int>& ready = g_block.ready;
  size_t at = 0;
  if (g_seed < 2) {
    for (size_t i = 1; i < ready.size(); ++i) {
      if ((ready[i] < ready[at]) == (g_seed == 0)) at = i;
    }
  } else {
    at = random_below(ready.size());
  }
  std::swap(ready[at], ready.back());
  const int taken = ready.back();
  ready.pop_back();
  return taken;
}

Thread& current() {
  if (g_block.current < 0) fail("a device function was called outside of a kernel");
  return *g_block.threads[static_cast<size_t>(g_block.current)];
}

void pause() {
  Thread& self = current();
  self.fiber->switch_to(g_block.scheduler);
}

void make_ready(int index) {
  g_block.threads[static_cast<size_t>(index)]->state = State::kReady;
  g_block.ready.push_back(index);
}

bool same_place(const Site& a, const Site& b) {
  const auto same = [](const char* s, const char* t) { return s == t || std::strcmp(s, t) == 0; };
  return a.line == b.line && same(a.what, b.what) && same(a.file, b.file);
}

std::string describe(const Site& site) {
  return std::string(site.what) + " at " + site.file + ":" + std::to_string(site.line);
}

std::string describe(const uint3& i) {
  return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
}

// How many threads are where: what one wants to read about a block that cannot go on.
[[noreturn]] void fail_stuck(const char* why) {
  std::map<std::string, std::pair<int, std::string>> places;
  for (int i = 0; i < g_block.count; ++i) {
    const Thread& t = *g_block.threads[static_cast<size_t>(i)];
    std::string place = t.state == State::kDone ? "left the kernel" : "wait in " + describe(t.site);
    if (t.state == State::kInWarp) {
      char mask[32];
      std::snprintf(mask, sizeof mask, " with mask 0x%08x", t.lane->mask);
      place += mask;
    }
    if (t.state == State::kReady) place = "had not come so far";
    auto& entry = places.try_emplace(place, 0, describe(t.index)).first->second;
    entry.first += 1;
  }
  std::string report;
  for (const auto& [place, who] : places) {
    report += "\n  " + std::to_string(who.first) + " threads (the first is " + who.second + ") " + place;
  }
  g_block.current = -1;  // it is nobody's fault in particular
  fail("%s%s", why, report.c_str());
}

void release_barrier() {
  if (g_block.done > 0) fail_stuck("divergent barrier: some threads of the block left the kernel before it");
  const Site& first = g_block.threads[0]->site;
  g_block.barrier_result = 0;
  for (int i = 0; i < g_block.count; ++i) {
    const Thread& t = *g_block.threads[static_cast<size_t>(i)];
    if (!same_place(first, t.site)) fail_stuck("divergent barrier: threads of the block wait at different barriers");
    g_block.barrier_result += t.predicate;
  }
  g_block.waiting = 0;
  for (int i = 0; i < g_block.count; ++i) make_ready(i);
}

// Lets the lanes of `mask` in `warp` go on if all of them that are still in the kernel have come.
void try_release_warp(int warp, uint32_t mask, const Site& site) {
  const int first = warp * 32;
  uint32_t present = 0, votes = 0;
  for (int lane = 0; lane < 32 && first + lane < g_block.count; ++lane) {
    if ((mask >> lane & 1u) == 0) continue;
    const Thread& t = *g_block.threads[static_cast<size_t>(first + lane)];
    if (t.state == State::kDone) continue;
    if (t.state != State::kInWarp || t.lane->mask != mask || !same_place(t.site, site)) return;
    present |= 1u << lane;
    votes |= t.lane->predicate ? 1u << lane : 0;
  }
  uint64_t* bits = g_block.warp_bits[warp];
  for (int lane = 0; lane < 32; ++lane) {
    if (present >> lane & 1u) bits[lane] = g_block.threads[static_cast<size_t>(first + lane)]->lane->bits;
  }
  for (int lane = 0; lane < 32; ++lane) {
    if ((present >> lane & 1u) == 0) continue;
    Lane& own = *g_block.threads[static_cast<size_t>(first + lane)]->lane;
    const int source = own.source == Lane::kOwn ? lane : own.source;
    if (source < 0 || source > 31 || (present >> source & 1u) == 0) {
      fail("%s: lane %d reads lane %d, which does not take part (mask 0x%08x)", describe(site).c_str(), lane, source,
           mask);
    }
    own.received = bits[source];
    own.votes = votes;
    own.present = present;
    if (own.all != nullptr) std::memcpy(own.all, bits, sizeof g_block.warp_bits[warp]);
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (present >> lane & 1u) make_ready(first + lane);
  }
}

// Lanes that wait for this warp need not wait for a thread that left.
void recheck_warp(int warp) {
  for (int i = warp * 32; i < g_block.count && i < warp * 32 + 32; ++i) {
    const Thread& t = *g_block.threads[static_cast<size_t>(i)];
    if (t.state == State::kInWarp) try_release_warp(warp, t.lane->mask, t.site);
  }
}

// A fiber's life: one thread after another, until the process ends.
void thread_main(void* argument) {
  const int own = static_cast<int>(reinterpret_cast<intptr_t>(argument));
  for (;;) {
    g_block.body(g_block.context);
    Thread& self = *g_block.threads[static_cast<size_t>(own)];
    self.state = State::kDone;
    g_block.done += 1;
    recheck_warp(own / 32);
    pause();
  }
}

// Whatever the last block left must not be there for the next one: 0xff bytes are NaN, and -1.
void poison_shared() {
  for (const Range& range : shared_ranges()) std::memset(range.begin, 0xff, range.size);
  if (g_block.dynamic_bytes > 0) std::memset(g_block.dynamic_shared.get(), 0xff, g_block.dynamic_bytes);
}

void run_block(const dim3& block) {
  poison_shared();
  g_block.waiting = g_block.done = 0;
  g_block.ready.clear();
  for (int i = 0; i < g_block.count; ++i) {
    const unsigned n = static_cast<unsigned>(i);
    g_block.threads[n]->index = {n % block.x, n / block.x % block.y, n / block.x / block.y};
    make_ready(i);
  }
  while (!g_block.ready.empty()) {
    g_block.current = take_ready();
    Thread& next = current();
    threadIdx = next.index;
    g_block.scheduler.switch_to(*next.fiber);
    g_block.current = -1;
    if (g_block.waiting > 0 && g_block.waiting + g_block.done == g_block.count) release_barrier();
  }
  if (g_block.done != g_block.count) fail_stuck("deadlock: no thread of the block can go on");
}

void check_launch(const void* kernel, const dim3& grid, const dim3& block, size_t shared_bytes) {
  const auto refuse = [&](const std::string& why) {
    throw std::runtime_error("cuda_host: launch of " + std::string(g_block.kernel) + " refused: " + why);
  };
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > 64) refuse("a block of " + std::to_string(threads) + " threads");
  if (uint64_t{grid.x} * grid.y * grid.z == 0) refuse("an empty grid");
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) refuse("a grid beyond 2^31 - 1, 65535, 65535");
  const auto allowed = g_dynamic_limits.find(kernel);
  const size_t limit = allowed == g_dynamic_limits.end() ? kMaxShared : allowed->second;
  if (shared_bytes > limit) {
    refuse(std::to_string(shared_bytes) + " bytes of dynamic shared memory, " + std::to_string(limit) + " allowed");
  }
}

}  // namespace

void set_seed(uint64_t seed) { g_seed = g_random = seed; }

SharedRecord::SharedRecord(const char* file, int line) {
  bool found = false;
  for (const AsanGlobal& g : globals()) {
    if (g.location == nullptr || g.location->line != line || std::strcmp(g.location->file, file) != 0) continue;
    if (std::strncmp(g.name, "cuda_host_shared_", 17) == 0) continue;
    found = true;
    const Range range{reinterpret_cast<char*>(g.begin), g.size};
    bool known = false;
    for (const Range& r : shared_ranges()) known = known || r.begin == range.begin;
    if (known) continue;
    shared_ranges().push_back(range);
    std::memset(range.begin, 0xff, range.size);  // the block has begun, but nobody has come past here yet
  }
  if (!found) {
    fail("the __shared__ variable at %s:%d is unknown to AddressSanitizer; put its kernel in an anonymous namespace",
         file, line);
  }
}

void* dynamic_shared() {
  current();
  return g_block.dynamic_shared.get();
}

void allow_dynamic_shared(const void* kernel, size_t bytes) { g_dynamic_limits[kernel] = bytes; }

void print_place() {
  std::fprintf(stderr, "cuda_host: in %s, block %s", g_block.kernel, describe(blockIdx).c_str());
  if (g_block.current >= 0) std::fprintf(stderr, ", thread %s", describe(current().index).c_str());
  std::fprintf(stderr, ", seed %llu\n", static_cast<unsigned long long>(g_seed));
  std::fflush(stderr);
}

void fail(const char* format, ...) {
  std::fflush(stdout);
  std::fprintf(stderr, "cuda_host: ");
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fprintf(stderr, "\n");
  print_place();
  _exit(kFailed);
}

void run_grid(const char* name, const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*),
              void* context) {
  g_block.kernel = name;
  check_launch(kernel, grid, block, shared_bytes);
  g_block.count = static_cast<int>(block.x * block.y * block.z);
  g_block.body = body;
  g_block.context = context;
  g_block.dynamic_shared = std::make_unique<char[]>(shared_bytes);
  g_block.dynamic_bytes = shared_bytes;
  while (g_block.threads.size() < static_cast<size_t>(g_block.count)) {
    auto thread = std::make_unique<Thread>();
    thread->fiber = std::make_unique<Fiber>(thread_main, reinterpret_cast<void*>(g_block.threads.size()));
    g_block.threads.push_back(std::move(thread));
  }
  gridDim = grid;
  blockDim = block;
  // Blocks in any order, too: upwards, downwards, or upwards from a random one.
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  const uint64_t first = g_seed < 2 ? 0 : random_below(blocks);
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t b = g_seed == 1 ? blocks - 1 - i : (first + i) % blocks;
    blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                static_cast<unsigned>(b / grid.x / grid.y)};
    run_block(block);
  }
  g_block.dynamic_shared.reset();
  g_block.dynamic_bytes = 0;
}

int barrier(const Site& site, bool predicate) {
  Thread& self = current();
  self.site = site;
  self.predicate = predicate;
  self.state = State::kAtBarrier;
  g_block.waiting += 1;
  pause();
  return g_block.barrier_result;
}

int lane_id() {
  current();
  return g_block.current % 32;
}

void meet(Lane& lane) {
  Thread& self = current();
  const int own = g_block.current;
  if ((lane.mask >> (own % 32) & 1u) == 0) {
    fail("%s: the mask 0x%08x leaves out lane %d, which calls it", describe(lane.site).c_str(), lane.mask, own % 32);
  }
  self.site = lane.site;
  self.lane = &lane;
  self.state = State::kInWarp;
  try_release_warp(own / 32, lane.mask, lane.site);
  pause();
}

}  // namespace cuda_host

// Linked with -Wl,--wrap: every instrumented module tells of its variables before main.
extern "C" void __real___asan_register_globals(AsanGlobal* all, uintptr_t count);
extern "C" void __wrap___asan_register_globals(AsanGlobal* all, uintptr_t count) {
  cuda_host::globals().insert(cuda_host::globals().end(), all, all + count);
  __real___asan_register_globals(all, count);
}
