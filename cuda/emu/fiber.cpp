// Stacks and the switch between them.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

#include "runtime.h"

// Saves the callee-saved registers on the running stack and continues on another one.
extern "C" void emu_switch(void** save, void* load);
#if defined(__x86_64__)
constexpr int SAVED_WORDS = 6;
asm(R"(.text
.globl emu_switch
.type emu_switch,@function
emu_switch:
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
.size emu_switch,.-emu_switch
)");
#elif defined(__aarch64__)
constexpr int SAVED_WORDS = 20;
asm(R"(.text
.globl emu_switch
.type emu_switch,%function
emu_switch:
  stp x29, x30, [sp, #-160]!
  stp x19, x20, [sp, #16]
  stp x21, x22, [sp, #32]
  stp x23, x24, [sp, #48]
  stp x25, x26, [sp, #64]
  stp x27, x28, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #16]
  ldp x21, x22, [sp, #32]
  ldp x23, x24, [sp, #48]
  ldp x25, x26, [sp, #64]
  ldp x27, x28, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  ldp x29, x30, [sp], #160
  ret
.size emu_switch,.-emu_switch
)");
#else
#error "the emulator has no context switch for this processor"
#endif

namespace emu {
namespace {

constexpr size_t GUARD_BYTES = 4096;

// Memory of one size, each piece behind a page that traps; kept for reuse while the OS thread lives.
class Pool {
 public:
  explicit Pool(size_t bytes) : bytes(bytes) {}
  ~Pool() {
    for (char* p : all) {
      EMU_UNPOISON(p, bytes);  // whoever is given these addresses next knows nothing of this
      munmap(p - GUARD_BYTES, bytes + GUARD_BYTES);
    }
  }
  char* take() {
    if (spare.empty()) spare.push_back(map());
    char* p = spare.back();
    spare.pop_back();
    return p;
  }
  void give(char* p) { spare.push_back(p); }

 private:
  char* map() {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* p = mmap(nullptr, bytes + GUARD_BYTES, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (p == MAP_FAILED) {
      std::perror("emulator: mmap");
      std::abort();
    }
    mprotect(p, GUARD_BYTES, PROT_NONE);
    EMU_UNPOISON(static_cast<char*>(p) + GUARD_BYTES, bytes);  // whoever had these addresses before
    all.push_back(static_cast<char*>(p) + GUARD_BYTES);
    return all.back();
  }
  const size_t bytes;
  std::vector<char*> all, spare;
};
thread_local Pool stacks{STACK_BYTES}, arenas{ARENA_BYTES}, shadows{ARENA_BYTES / 2 * sizeof(Shadow)};

}  // namespace

char* take_arena() { return arenas.take(); }
void give_arena(char* p) { arenas.give(p); }
Shadow* take_shadow() { return reinterpret_cast<Shadow*>(shadows.take()); }
void give_shadow(Shadow* p) { shadows.give(reinterpret_cast<char*>(p)); }

void give_stack(Fiber* f) {
  // Functions that returned have left nothing poisoned.
  if (launch->failed) EMU_UNPOISON(f->stack, STACK_BYTES);
  stacks.give(f->stack);
}

void prepare(Fiber* f, void (*entry)()) {
  if (!f->stack) f->stack = stacks.take();
  f->fake_stack = nullptr;
  void** top = reinterpret_cast<void**>(f->stack + STACK_BYTES);
#if defined(__x86_64__)
  *--top = nullptr;  // keeps the stack aligned as at a call
  *--top = reinterpret_cast<void*>(entry);
  top -= SAVED_WORDS;
#else
  top -= SAVED_WORDS;
  top[0] = nullptr;
  top[1] = reinterpret_cast<void*>(entry);  // x30, the return address
#endif
  f->stack_pointer = top;
}

void resume(Fiber* f) {
  launch->running = f;
  current = f;
  launch->stats.switches++;
#ifdef EMU_ASAN
  __sanitizer_start_switch_fiber(&launch->main_fake_stack, f->stack, STACK_BYTES);
#endif
  emu_switch(&launch->main_stack_pointer, f->stack_pointer);
#ifdef EMU_ASAN
  __sanitizer_finish_switch_fiber(launch->main_fake_stack, nullptr, nullptr);
#endif
}

void suspend(Fiber* f, [[maybe_unused]] bool last) {
#ifdef EMU_ASAN
  __sanitizer_start_switch_fiber(last ? nullptr : &f->fake_stack, launch->main_stack_bottom, launch->main_stack_bytes);
#endif
  emu_switch(&f->stack_pointer, launch->main_stack_pointer);
#ifdef EMU_ASAN
  __sanitizer_finish_switch_fiber(f->fake_stack, &launch->main_stack_bottom, &launch->main_stack_bytes);
#endif
}

void hand_over(Fiber* from, Fiber* to) {
  launch->running = to;
  current = to;
  launch->stats.switches++;
  emu_switch(&from->stack_pointer, to->stack_pointer);
}

}  // namespace emu
