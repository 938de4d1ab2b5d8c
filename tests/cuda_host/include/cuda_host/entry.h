// One call from Python: the arguments by their C++ types, tensors as buffers of exactly their size.
#pragma once

#include <cstdint>
#include <istream>
#include <map>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace cuda_host {

// What stands between Python's tensors and a kernel's pointers: a copy of each tensor's memory at an
// address as aligned as the tensor's own, with nothing before its first byte and after its last.
class Buffers {
 public:
  // Bytes of a tensor that travel; the others, if it spans gigabytes of gaps, do not.
  struct Run {
    size_t offset, size;
  };
  Buffers();
  ~Buffers();
  Buffers(const Buffers&) = delete;
  Buffers& operator=(const Buffers&) = delete;
  void add(uint64_t python_address, size_t size, std::vector<Run> runs, std::istream& bytes);
  void* at(uint64_t python_address) const;  // null stays null
  void write(std::ostream& out) const;
  void explain(const void* address) const;  // of which tensor it is out of bounds, on stderr

 private:
  struct Buffer {
    uint64_t python_address;
    size_t size, total;
    char *allocation, *data;
    std::vector<Run> runs;
  };
  std::vector<Buffer> all_;
};

// The argument list: words "i 42", "f 0x1p+0", "t 2 ..." (a tuple of two), "l 2 ..." (a list of two).
class Request {
 public:
  Request(std::istream& words, const Buffers& buffers) : words_(words), buffers_(buffers) {}
  void expect(const char* kind);
  int64_t integer();
  uint64_t unsigned_integer();
  double real();
  void* address(const char* kind);

 private:
  std::istream& words_;
  const Buffers& buffers_;
};

template <typename T, typename = void>
struct Decode;

template <typename T>
struct Decode<T, std::enable_if_t<std::is_integral_v<T> && std::is_signed_v<T>>> {
  static T from(Request& request) {
    request.expect("i");
    return static_cast<T>(request.integer());
  }
};
template <>
struct Decode<bool> {
  static bool from(Request& request) {
    request.expect("i");
    return request.integer() != 0;
  }
};
template <>
struct Decode<double> {
  static double from(Request& request) {
    request.expect("f");
    return request.real();
  }
};
template <typename T>
struct Decode<std::vector<T>> {
  static std::vector<T> from(Request& request) {
    request.expect("l");
    std::vector<T> out(static_cast<size_t>(request.integer()));
    for (T& value : out) value = Decode<T>::from(request);
    return out;
  }
};
template <typename... Parts>
struct Decode<std::tuple<Parts...>> {
  static std::tuple<Parts...> from(Request& request) {
    request.expect("t");
    if (request.integer() != sizeof...(Parts)) throw std::invalid_argument("a tuple of another length");
    return std::tuple<Parts...>{Decode<Parts>::from(request)...};  // braces: from left to right
  }
};

// Runs an entry; gives what it returned, as text for Python ("None" or a number).
using Entry = std::string (*)(Request&);
std::map<std::string, Entry>& entries();

template <auto kFunction>
struct Caller;
template <typename R, typename... P, R (*kFunction)(P...)>
struct Caller<kFunction> {
  static std::string call(Request& request) {
    // Braces: the arguments are read from left to right.
    std::tuple<std::decay_t<P>...> arguments{Decode<std::decay_t<P>>::from(request)...};
    if constexpr (std::is_void_v<R>) {
      std::apply(kFunction, std::move(arguments));
      return "None";
    } else {
      return std::to_string(std::apply(kFunction, std::move(arguments)));
    }
  }
};

struct Register {
  Register(const char* name, Entry entry) { entries()[name] = entry; }
};

}  // namespace cuda_host

// Lets Python call `function` (of namespace `space`) by its name, as module.cpp does for the real core.
#define CUDA_HOST_ENTRY(space, function) \
  static const ::cuda_host::Register cuda_host_entry_##function(#function, &::cuda_host::Caller<&space::function>::call)
