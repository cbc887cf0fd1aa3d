// Tiles of Intel's AMX (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18):
// eight registers of 16 rows of 64 bytes. Compiled once per instruction set: include only from
// kernels/levels/*.cpp.
//
// Registers are named by number when the program is compiled. AmxTiles is written against a class of
// operations on them: AmxRegisters, the instructions, or EmulatedRegisters, which does the same in plain code
// on any CPU.
#pragma once

#include "kernels/row_prefetch.h"
#include "kernels/tiles.h"

namespace torch_lsh::TORCH_LSH_LEVEL {

constexpr int64_t kAmxRows = 16, kAmxRowBytes = 64, kAmxRegisters = 8;

// What LDTILECFG reads.
struct alignas(64) AmxConfiguration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  constexpr AmxConfiguration() {
    for (int64_t i = 0; i < kAmxRegisters; ++i) row_bytes[i] = kAmxRowBytes, rows[i] = kAmxRows;
  }
};
static_assert(sizeof(AmxConfiguration) == 64);

#if defined(__x86_64__)
// The instructions. As inline assembly, because intrinsics want the number of a register as a literal, not as
// a constant. Operands are in AT&T order: the sums, which Intel's manual names first, come last.
struct AmxRegisters {
  static void configure() {
    static constexpr AmxConfiguration configuration;
    asm volatile("ldtilecfg %0" ::"m"(configuration));
  }
  static void release() { asm volatile("tilerelease" ::: "memory"); }
  template <int64_t Tile>
  static void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(Tile));
  }
  template <int64_t Tile>
  static void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(Tile) : "memory");
  }
  template <int64_t Tile>
  static void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(Tile) : "memory");
  }
  template <int64_t Sums, int64_t Left, int64_t Right>
  static void add_product(BFloat16) {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sums), "i"(Left), "i"(Right));
  }
  template <int64_t Sums, int64_t Left, int64_t Right>
  static void add_product(int8_t) {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sums), "i"(Left), "i"(Right));
  }
};
#endif

// The same as the manual describes it. Ends the process where the CPU would raise an exception.
class EmulatedRegisters {
 public:
  static void configure() { state().configured = true; }
  static void release() { state() = {}; }
  template <int64_t Tile>
  static void zero() {
    __builtin_memset(bytes<Tile>(), 0, kAmxRows * kAmxRowBytes);
  }
  template <int64_t Tile>
  static void load(const void* from, int64_t stride) {
    for (int64_t row = 0; row < kAmxRows; ++row)
      __builtin_memcpy(bytes<Tile>() + row * kAmxRowBytes, static_cast<const char*>(from) + row * stride,
                       kAmxRowBytes);
  }
  template <int64_t Tile>
  static void store(void* to, int64_t stride) {
    for (int64_t row = 0; row < kAmxRows; ++row)
      __builtin_memcpy(static_cast<char*>(to) + row * stride, bytes<Tile>() + row * kAmxRowBytes,
                       kAmxRowBytes);
  }
  template <int64_t Sums, int64_t Left, int64_t Right, typename T>
  static void add_product(T) {
    static_assert(Sums != Left && Sums != Right && Left != Right);  // else an invalid instruction
    using Shape = TileShape<16, kAmxRowBytes / sizeof(T), 16, 4 / sizeof(T), 1, 1, true>;
    PortableTiles<T, Shape>::add_product(reinterpret_cast<const T*>(bytes<Left>()), Shape::kDepth,
                                         reinterpret_cast<const T*>(bytes<Right>()),
                                         reinterpret_cast<typename TileSum<T>::type*>(bytes<Sums>()), 16);
  }

 private:
  struct State {
    bool configured = false;
    alignas(64) char tiles[kAmxRegisters][kAmxRows * kAmxRowBytes] = {};
  };

  static State& state() {
    static thread_local State of_thread;
    return of_thread;
  }
  template <int64_t Tile>
  static char* bytes() {
    static_assert(Tile >= 0 && Tile < kAmxRegisters);
    if (!state().configured) __builtin_trap();
    return state().tiles[Tile];
  }
};

// Calls run.operator()<0>() to run.operator()<Count - 1>().
template <int64_t Count, typename Run>
inline void for_constants(const Run& run) {
  if constexpr (Count > 0) {
    for_constants<Count - 1>(run);
    run.template operator()<Count - 1>();
  }
}

// Registers hold four sums, and both their left and right tiles.
template <typename T>
using AmxShape = TileShape<16, kAmxRowBytes / sizeof(T), 16, 4 / sizeof(T), 2, 2, true>;

template <typename T, typename Registers>
struct AmxTiles : AmxShape<T> {
  using Type = T;
  using Sum = typename TileSum<T>::type;
  using Shape = AmxShape<T>;

  // Tiles are part of a thread's state: while they are in use, the system saves them with it.
  class Session {
   public:
    Session() { Registers::configure(); }
    ~Session() { Registers::release(); }
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
  };

  template <int64_t Down, int64_t Across>
  static void multiply(const LeftTiles<T>& left, const T* right, int64_t steps, bool add, Sum* out,
                       int64_t stride) {
    constexpr int64_t kSums = Down * Across, kRights = kAmxRegisters - kSums - Down;
    static_assert(kRights >= 1);
    const int64_t sum_bytes = stride * static_cast<int64_t>(sizeof(Sum));
    const auto for_sums = [&](const auto& run) {
      for_constants<Down>([&]<int64_t I>() {
        for_constants<Across>([&]<int64_t J>() {
          run.template operator()<I * Across + J>(out + I * Shape::kRows * stride + J * Shape::kColumns);
        });
      });
    };
    for_sums([&]<int64_t Tile>(Sum* from) {
      if (add) {
        Registers::template load<Tile>(from, sum_bytes);
      } else {
        Registers::template zero<Tile>();
      }
    });
    constexpr int64_t kStepBytes = Down * kAmxRows * kAmxRowBytes;
    for (int64_t step = 0; step < steps; ++step) {
      // Line after line: tiles are read across the lines of many rows, which the hardware does not foresee.
      if (left.scanned != nullptr)
        for (int64_t line = 0; line < kStepBytes; line += 64)
          prefetch_scan(left.scanned + step * kStepBytes + line);
      for_constants<Down>([&]<int64_t I>() {
        Registers::template load<kSums + I>(left.from + I * left.tile + step * left.step,
                                            left.row * static_cast<int64_t>(sizeof(T)));
      });
      for_constants<Across>([&]<int64_t J>() {
        // In turn, where there is more than one, so that loads need not wait for products.
        constexpr int64_t kRight = kSums + Down + J % kRights;
        Registers::template load<kRight>(right + (step * Across + J) * Shape::kDepth * Shape::kColumns,
                                         kAmxRowBytes);
        for_constants<Down>(
            [&]<int64_t I>() { Registers::template add_product<I * Across + J, kSums + I, kRight>(T{}); });
      });
    }
    for_sums([&]<int64_t Tile>(Sum* to) { Registers::template store<Tile>(to, sum_bytes); });
  }
};

}  // namespace torch_lsh::TORCH_LSH_LEVEL
