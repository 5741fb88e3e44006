// Where threads wait for each other.
#pragma once
#include <sched.h>

#include <atomic>

// OpenMP's own barrier spins for milliseconds. When other programs want the processors too, two of our threads may
// share one, and whoever spins then keeps the other from the work that it waits for: hundreds of times a pass. So this
// one soon gives way.
struct Barrier {
    enum { PATIENCE = 200 };
    alignas(64) std::atomic<int64_t> arrived{0};
    alignas(64) std::atomic<int64_t> round{0};
    alignas(64) std::atomic<int64_t> taken{0};  // units of work that threads have taken since they last met

    void wait(int64_t threads) {
        if (threads == 1) {
            taken.store(0, std::memory_order_relaxed);
            return;
        }
        const int64_t now = round.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
            arrived.store(0, std::memory_order_relaxed);
            taken.store(0, std::memory_order_relaxed);
            round.store(now + 1, std::memory_order_release);
            return;
        }
        for (int64_t tries = 0; round.load(std::memory_order_acquire) == now; ++tries) {
            if (tries >= PATIENCE) sched_yield();
#if defined(__x86_64__)
            else __builtin_ia32_pause();
#endif
        }
    }
};
