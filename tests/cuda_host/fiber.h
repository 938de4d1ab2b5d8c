// Fibers: stacks of their own on one operating-system thread, switched by hand, known to AddressSanitizer.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace cuda_host {

class Fiber {
 public:
  // The fiber of whoever calls it: the place that the others switch back to.
  Fiber() = default;
  // Runs entry(argument) at the first switch; entry must never return.
  Fiber(void (*entry)(void*), void* argument);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  void switch_to(Fiber& next);

 private:
  static void start();

  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  void* mapping_ = nullptr;       // a guard page, then the stack
  const void* bottom_ = nullptr;  // as AddressSanitizer knows the stack
  size_t size_ = 0;
  void* fake_stack_ = nullptr;
#if defined(__x86_64__)
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_{};
#endif
};

}  // namespace cuda_host
