// The kernels of amx_bf16 over registers in memory, in plain code. For tests: runs everywhere, slowly.
#define TORCH_LSH_LEVEL amx_emulated
#define TORCH_LSH_VECTOR_BYTES 0
#define TORCH_LSH_TILE_ROWS 4
#define TORCH_LSH_AMX_REGISTERS EmulatedRegisters
#include "kernels/levels/amx.h"
