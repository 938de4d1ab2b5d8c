#include "fiber.h"

#include <sanitizer/common_interface_defs.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if defined(__x86_64__)
// swapcontext would make two system calls a switch, and AddressSanitizer's wrapper of it wipes what it
// knows of the stack. So: keep the registers that a callee must keep, swap stacks, take the others'.
extern "C" void cuda_host_switch(void** save, void* load);
asm(R"(
.text
.globl cuda_host_switch
.type cuda_host_switch, @function
cuda_host_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_host_switch, .-cuda_host_switch
)");
#endif

namespace cuda_host {
namespace {

constexpr size_t kStackBytes = 128 * 1024;  // AddressSanitizer's redzones make frames several times larger

Fiber* g_from = nullptr;  // who switched last, and to whom
Fiber* g_to = nullptr;

}  // namespace

Fiber::Fiber(void (*entry)(void*), void* argument) : entry_(entry), argument_(argument), size_(kStackBytes) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  mapping_ =
      mmap(nullptr, page + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping_ == MAP_FAILED) throw std::bad_alloc();
  mprotect(mapping_, page, PROT_NONE);
  char* bottom = static_cast<char*>(mapping_) + page;
  bottom_ = bottom;
#if defined(__x86_64__)
  void** top = reinterpret_cast<void**>(bottom + kStackBytes);
  *--top = nullptr;  // where start() would return to; it keeps the alignment that the ABI asks for
  *--top = reinterpret_cast<void*>(&Fiber::start);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  stack_pointer_ = top;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = bottom;
  context_.uc_stack.ss_size = kStackBytes;
  context_.uc_link = nullptr;
  makecontext(&context_, &Fiber::start, 0);
#endif
}

Fiber::~Fiber() {
  if (mapping_ != nullptr) munmap(mapping_, size_ + static_cast<size_t>(sysconf(_SC_PAGESIZE)));
}

void Fiber::switch_to(Fiber& next) {
  g_from = this;
  g_to = &next;
  __sanitizer_start_switch_fiber(&fake_stack_, next.bottom_, next.size_);
#if defined(__x86_64__)
  cuda_host_switch(&stack_pointer_, next.stack_pointer_);
#else
  swapcontext(&context_, &next.context_);
#endif
  // Back again: whoever switched here left its bounds, which only the first stack does not know.
  __sanitizer_finish_switch_fiber(fake_stack_, &g_from->bottom_, &g_from->size_);
}

void Fiber::start() {
  Fiber* self = g_to;
  __sanitizer_finish_switch_fiber(nullptr, &g_from->bottom_, &g_from->size_);
  self->entry_(self->argument_);
  __builtin_trap();
}

}  // namespace cuda_host
