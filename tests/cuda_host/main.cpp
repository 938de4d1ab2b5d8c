// One call of one op: main REQUEST REPLY. The request (tests/cuda_host/emulator.py writes it) is
//   <entry> <seed> <tensors> \n  { <address> <size> <runs> { <offset> <size> } \n }  <arguments> \n  <bytes>
// and the reply <returned> \n <bytes>: those of every run of every tensor.
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <sstream>

#include "cuda_host/entry.h"
#include "scheduler.h"

namespace cuda_host {

std::map<std::string, Entry>& entries() {
  static std::map<std::string, Entry> all;
  return all;
}

namespace {

constexpr size_t kAlignment = 256;      // what cudaMalloc gives; no vector access needs more
constexpr size_t kGuard = 1024 * 1024;  // poisoned on either side, so that a wrong stride does not hit a neighbour
const Buffers* g_buffers = nullptr;

// Called by the sanitizers, after their report.
void explain() {
  if (g_buffers != nullptr && __asan_report_present()) g_buffers->explain(__asan_get_report_address());
  print_place();
}

}  // namespace

Buffers::Buffers() { g_buffers = this; }

Buffers::~Buffers() {
  g_buffers = nullptr;
  for (const Buffer& b : all_) {
    ASAN_UNPOISON_MEMORY_REGION(b.data - kGuard, kGuard);
    ASAN_UNPOISON_MEMORY_REGION(b.data + b.size, kGuard);
    munmap(b.allocation, b.total);
  }
}

// Mapped, not malloc'ed: pages that nobody touches cost nothing, so a tensor may span gigabytes.
void Buffers::add(uint64_t python_address, size_t size, std::vector<Run> runs, std::istream& bytes) {
  const size_t offset = python_address % kAlignment;
  const size_t total = kGuard + offset + size + kGuard;
  void* allocation = mmap(nullptr, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (allocation == MAP_FAILED) throw std::bad_alloc();
  char* start = static_cast<char*>(allocation);
  all_.push_back({python_address, size, total, start, start + kGuard + offset, std::move(runs)});
  const Buffer& b = all_.back();
  for (const Run& run : b.runs) bytes.read(b.data + run.offset, static_cast<std::streamsize>(run.size));
  if (!bytes) throw std::invalid_argument("the request ends early");
  ASAN_POISON_MEMORY_REGION(b.data - kGuard, kGuard);
  ASAN_POISON_MEMORY_REGION(b.data + size, kGuard);
}

void* Buffers::at(uint64_t python_address) const {
  if (python_address == 0) return nullptr;
  for (const Buffer& b : all_) {
    if (b.python_address == python_address) return b.data;
  }
  throw std::invalid_argument("pointer " + std::to_string(python_address) + " is not that of a tensor of this call");
}

void Buffers::write(std::ostream& out) const {
  for (const Buffer& b : all_) {
    for (const Run& run : b.runs) out.write(b.data + run.offset, static_cast<std::streamsize>(run.size));
  }
}

void Buffers::explain(const void* address) const {
  const char* at = static_cast<const char*>(address);
  for (size_t i = 0; i < all_.size(); ++i) {
    const Buffer& b = all_[i];
    if (at < b.allocation || at >= b.allocation + b.total) continue;
    const bool before = at < b.data;
    std::fprintf(stderr, "cuda_host: %zu bytes %s tensor %zu of the call, which has %zu bytes\n",
                 static_cast<size_t>(before ? b.data - at : at - (b.data + b.size)),
                 before ? "before the start of" : "past the end of", i, b.size);
  }
}

void Request::expect(const char* kind) {
  std::string word;
  words_ >> word;
  if (word != kind) throw std::invalid_argument("expected an argument of kind " + std::string(kind) + ", got " + word);
}

int64_t Request::integer() {
  int64_t value = 0;
  if (!(words_ >> value)) throw std::invalid_argument("expected an integer");
  return value;
}

uint64_t Request::unsigned_integer() {
  uint64_t value = 0;
  if (!(words_ >> value)) throw std::invalid_argument("expected an address");
  return value;
}

double Request::real() {
  std::string word;
  words_ >> word;
  char* end = nullptr;
  const double value = std::strtod(word.c_str(), &end);
  if (word.empty() || *end != '\0') throw std::invalid_argument("expected a number, got " + word);
  return value;
}

void* Request::address(const char* kind) {
  expect(kind);
  return buffers_.at(unsigned_integer());
}

namespace {

using Run = Buffers::Run;

void run(const char* request_path, const char* reply_path) {
  std::ifstream in(request_path, std::ios::binary);
  std::string name, line;
  uint64_t seed = 0, count = 0;
  in >> name >> seed >> count;
  struct Head {
    uint64_t address;
    size_t size;
    std::vector<Run> runs;
  };
  std::vector<Head> heads(count);
  for (auto& [address, size, runs] : heads) {
    in >> address >> size >> count;
    runs.resize(count);
    for (Run& run : runs) in >> run.offset >> run.size;
  }
  std::getline(in, line);  // the rest of the last line
  std::getline(in, line);
  Buffers buffers;
  for (auto& [address, size, runs] : heads) buffers.add(address, size, std::move(runs), in);

  const auto found = entries().find(name);
  if (found == entries().end()) throw std::invalid_argument("no entry " + name + "; register it in <op>.cpp");
  std::istringstream words(line);
  Request request(words, buffers);
  set_seed(seed);
  const std::string returned = found->second(request);
  if (words >> line) throw std::invalid_argument(name + ": too many arguments");

  std::ofstream out(reply_path, std::ios::binary);
  out << returned << '\n';
  buffers.write(out);
}

}  // namespace
}  // namespace cuda_host

int main(int argc, char** argv) {
  if (argc != 3) return cuda_host::kRefused;
  __sanitizer_set_death_callback(&cuda_host::explain);
  try {
    cuda_host::run(argv[1], argv[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return cuda_host::kRefused;
  }
  return 0;
}
