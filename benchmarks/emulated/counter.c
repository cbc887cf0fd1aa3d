// A plugin of QEMU that prints the number of instructions that a program has run.
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>

// What is used of qemu-plugin.h, which Debian does not package.
typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
                                           void (*callback)(qemu_plugin_id_t id,
                                                            struct qemu_plugin_tb* block));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb* block,
                                          void (*callback)(unsigned int cpu, void* data), int flags,
                                          void* data);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id, void (*callback)(qemu_plugin_id_t id, void* data),
                                    void* data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb* block);

int qemu_plugin_version = 1;  // of the interface, which QEMU 9 ended

static uint64_t instructions;

static void run_block(unsigned int cpu, void* data) {
  instructions += (uintptr_t)data;
}

static void translate_block(qemu_plugin_id_t id, struct qemu_plugin_tb* block) {
  qemu_plugin_register_vcpu_tb_exec_cb(block, run_block, 0, (void*)qemu_plugin_tb_n_insns(block));
}

static void finish(qemu_plugin_id_t id, void* data) {
  fprintf(stderr, "%" PRIu64 "\n", instructions);
}

int qemu_plugin_install(qemu_plugin_id_t id, const void* info, int count, char** arguments) {
  qemu_plugin_register_vcpu_tb_trans_cb(id, translate_block);
  qemu_plugin_register_atexit_cb(id, finish, NULL);
  return 0;
}
