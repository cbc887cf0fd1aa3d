// Runs the tile products of level amx_bf16 by AMX's instructions, and compares them with the emulated
// registers. On a CPU without AMX each instruction raises SIGILL; the handler below decodes and executes it
// as Intel's manual describes (volume 2, "LDTILECFG" to "TILEZERO"), independently of EmulatedRegisters. So
// the encodings, operands and strides that the compiler made are tested on every x86 CPU.
#include <cpuid.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#define TORCH_LSH_LEVEL instructions
#define TORCH_LSH_VECTOR_BYTES 0
#define TORCH_LSH_TILE_ROWS 4
#include "kernels/amx_tiles.h"
#include "kernels/tile_product.h"

using namespace torch_lsh;
using namespace torch_lsh::instructions;

namespace {

struct {
  uint8_t palette, start, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
} configuration;
uint8_t tiles[8][16][64];
long executed;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  std::_Exit(2);
}

float as_float(const uint8_t* bf16) {
  uint16_t half;
  std::memcpy(&half, bf16, 2);
  const uint32_t bits = uint32_t{half} << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

void multiply(int sums, int left, int right, bool bf16) {
  if (sums == left || sums == right || left == right) fail("#UD: a tile is named twice");
  const int columns = configuration.row_bytes[sums] / 4, words = configuration.row_bytes[left] / 4;
  if (configuration.rows[sums] != configuration.rows[left] || configuration.rows[right] != words ||
      configuration.row_bytes[right] != configuration.row_bytes[sums])
    fail("#UD: tiles do not fit");
  for (int m = 0; m < configuration.rows[sums]; ++m)
    for (int n = 0; n < columns; ++n) {
      float even = 0, odd = 0, single;
      int32_t integer;
      std::memcpy(&single, &tiles[sums][m][4 * n], 4);
      std::memcpy(&integer, &tiles[sums][m][4 * n], 4);
      for (int k = 0; k < words; ++k) {
        const uint8_t *a = &tiles[left][m][4 * k], *b = &tiles[right][k][4 * n];
        even += as_float(a) * as_float(b);
        odd += as_float(a + 2) * as_float(b + 2);
        for (int i = 0; i < 4; ++i) integer += static_cast<int8_t>(a[i]) * static_cast<int8_t>(b[i]);
      }
      single += even + odd;
      std::memcpy(&tiles[sums][m][4 * n], bf16 ? static_cast<void*>(&single) : &integer, 4);
    }
}

// Executes the instruction at `code` and returns its length.
int execute(const uint8_t* code, const greg_t* registers) {
  static constexpr int kRegisters[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                       REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                       REG_R12, REG_R13, REG_R14, REG_R15};
  if (code[0] != 0xc4 || (code[1] & 31) != 2 || (code[2] & 0x84) != 0) fail("not an instruction of AMX");
  enum { kNone, k66, kF3, kF2 };
  const int prefix = code[2] & 3, opcode = code[3], mod = code[4] >> 6, reg = code[4] >> 3 & 7,
            rm = code[4] & 7;
  const int vvvv = ~(code[2] >> 3) & 15, high_base = code[1] & 0x20 ? 0 : 8,
            high_index = code[1] & 0x40 ? 0 : 8;
  if (opcode == 0x49 && mod == 3 && prefix == kNone && reg == 0) {  // TILERELEASE
    configuration = {};
    std::memset(tiles, 0, sizeof(tiles));
    return 5;
  }
  if (opcode != 0x49 && configuration.palette != 1) fail("#UD: tiles are not configured");
  if (opcode == 0x49 && mod == 3 && prefix == kF2) {  // TILEZERO
    std::memset(tiles[reg], 0, sizeof(tiles[reg]));
    return 5;
  }
  if (mod == 3 && ((opcode == 0x5c && prefix == kF3) || (opcode == 0x5e && prefix == kF2))) {
    multiply(reg, rm, vvvv, opcode == 0x5c);  // TDPBF16PS, TDPBSSD
    return 5;
  }
  int length = 5, base = rm + high_base;
  int64_t stride = 0;
  if (rm == 4) {
    const int sib = code[length++], index = (sib >> 3 & 7) + high_index;
    base = (sib & 7) + high_base;
    if (index != 4) stride = registers[kRegisters[index]] << (sib >> 6);
  }
  int64_t address = 0;
  if (mod == 0 && rm == 5) {  // relative to the next instruction
    int32_t offset;
    std::memcpy(&offset, code + length, 4);
    address = reinterpret_cast<int64_t>(code) + length + 4 + offset;
    length += 4;
  } else {
    if (mod == 0 && rm == 4 && (base & 7) == 5) fail("an address without a base");
    address = registers[kRegisters[base]];
    int32_t offset = 0;
    if (mod == 1) offset = static_cast<int8_t>(code[length++]);
    if (mod == 2) std::memcpy(&offset, code + length, 4), length += 4;
    address += offset;
  }
  if (opcode == 0x49 && prefix == kNone && reg == 0) {  // LDTILECFG
    std::memcpy(&configuration, reinterpret_cast<void*>(address), 64);
    for (int i = 0; i < 16; ++i)
      if (configuration.palette != 1 || configuration.row_bytes[i] > (i < 8 ? 64 : 0) ||
          configuration.rows[i] > (i < 8 ? 16 : 0))
        fail("#GP: a configuration that does not exist");
    return length;
  }
  if (opcode != 0x4b || rm != 4) fail("not an instruction that is known");
  for (int row = 0; row < configuration.rows[reg]; ++row) {
    auto* const memory = reinterpret_cast<uint8_t*>(address + row * stride);
    if (prefix == kF2) {  // TILELOADD
      std::memcpy(tiles[reg][row], memory, configuration.row_bytes[reg]);
    } else if (prefix == kF3) {  // TILESTORED
      std::memcpy(memory, tiles[reg][row], configuration.row_bytes[reg]);
    } else {
      fail("not an instruction that is known");
    }
  }
  return length;
}

void on_illegal_instruction(int, siginfo_t*, void* context) {
  greg_t* const registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  registers[REG_RIP] += execute(reinterpret_cast<const uint8_t*>(registers[REG_RIP]), registers);
  ++executed;
}

bool has_amx() {
  uint32_t eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx >> 22 & 13) == 13 &&
         syscall(SYS_arch_prctl, 0x1023L, 18L) == 0;
}

void random(std::vector<BFloat16>& numbers) {
  for (BFloat16& number : numbers) number = to_bfloat16(static_cast<float>(std::rand() % 257 - 128) / 16);
}
void random(std::vector<int8_t>& numbers) {
  for (int8_t& number : numbers) number = static_cast<int8_t>(std::rand() % 256 - 128);
}

float to_number(BFloat16 number) {
  return to_float(number);
}
int32_t to_number(int8_t number) {
  return number;
}

// The products of an operand that is read in place, or transposed.
template <typename T, typename Registers>
std::vector<typename TileSum<T>::type> product(const std::vector<T>& a, const std::vector<T>& b, int64_t rows,
                                               int64_t depth, int64_t columns, bool transposed) {
  using Product = TileProduct<AmxTiles<T, Registers>>;
  using Sum = typename TileSum<T>::type;
  const int64_t panels = (columns + Product::kPanelWidth - 1) / Product::kPanelWidth;
  std::vector<Sum> packed(panels * Product::panel_size(depth)), out(rows * columns), bias(rows);
  for (int64_t i = 0; i < rows; ++i) bias[i] = static_cast<Sum>(i);
  for (int64_t panel = 0; panel < panels; ++panel)
    Product::pack_panel(b.data(), columns, 1, depth, columns, panel, 0, depth, packed.data());
  for (const bool add : {false, true})
    Product::product(a.data(), transposed ? 1 : depth, transposed ? rows : 1, rows, depth, packed.data(),
                     columns, bias.data(), add, out.data(), columns);
  return out;
}

template <typename T>
void compare(int64_t rows, int64_t depth, int64_t columns) {
  std::vector<T> a(rows * depth), b(depth * columns);
  random(a);
  random(b);
  for (const bool transposed : {false, true}) {
    const auto by_instructions = product<T, AmxRegisters>(a, b, rows, depth, columns, transposed);
    const auto emulated = product<T, EmulatedRegisters>(a, b, rows, depth, columns, transposed);
    for (size_t i = 0; i < emulated.size(); ++i) {
      // Exactly: sums of these numbers are exact in any order.
      if (by_instructions[i] != emulated[i]) fail("the instructions differ from the emulated registers");
      double sum = static_cast<double>(i / columns);
      for (int64_t k = 0; k < depth; ++k) {
        const T left = transposed ? a[k * rows + i / columns] : a[i / columns * depth + k];
        const T right = b[k * columns + i % columns];
        sum += 2.0 * static_cast<double>(to_number(left)) * static_cast<double>(to_number(right));
      }
      if (static_cast<double>(emulated[i]) != sum) fail("the product is wrong");
    }
  }
}

}  // namespace

int main() {
  const bool real = has_amx();
  if (!real) {
    struct sigaction action = {};
    action.sa_sigaction = on_illegal_instruction;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGILL, &action, nullptr);
  }
  for (const int64_t rows : {1, 16, 33, 64, 70})
    for (const int64_t depth : {1, 64, 100, 300})
      for (const int64_t columns : {1, 32, 48, 70}) {
        compare<BFloat16>(rows, depth, columns);
        compare<int8_t>(rows, depth, columns);
      }
  std::printf("%s %ld\n", real ? "real" : "emulated", executed);
}
