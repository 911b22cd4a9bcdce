/*
 * Work for the other CPUs: each, once started, waits for a function, runs it, and waits again.
 */
#include "guest/platform/common/common.h"

struct cpu {
    void (*function)(void *arg); /* set last, cleared by the CPU when it has returned */
    void *arg;
    bool up;
};

static struct cpu cpus[ARCH_CPUS_MAX];

void cpu_main(unsigned index)
{
    struct cpu *cpu = &cpus[index];
    for (;;) {
        void (*function)(void *) = __atomic_load_n(&cpu->function, __ATOMIC_ACQUIRE); /* machine_run_on_cpu */
        if (!function) {
            arch_wait(arch_now_ns() + 1000000); /* nobody sends an interrupt: look again in a millisecond */
            continue;
        }
        function(cpu->arg);
        __atomic_store_n(&cpu->function, NULL, __ATOMIC_RELEASE); /* machine_cpu_wait */
    }
}

unsigned machine_num_cpus(void)
{
    unsigned count = arch_num_cpus();
    return count < ARCH_CPUS_MAX ? count : ARCH_CPUS_MAX;
}

unsigned machine_this_cpu(void)
{
    return arch_this_cpu();
}

int machine_run_on_cpu(unsigned index, void (*function)(void *arg), void *arg)
{
    if (index == 0 || index >= machine_num_cpus() || __atomic_load_n(&cpus[index].function, __ATOMIC_ACQUIRE))
        return -1;
    for (unsigned i = 1; i <= index; i++) { /* they come up in their order only */
        if (!cpus[i].up && arch_cpu_start(i) != 0)
            return -1;
        cpus[i].up = true;
    }
    cpus[index].arg = arg;
    __atomic_store_n(&cpus[index].function, function, __ATOMIC_RELEASE); /* read by cpu_main */
    return 0;
}

void machine_cpu_wait(unsigned index)
{
    while (index < ARCH_CPUS_MAX && __atomic_load_n(&cpus[index].function, __ATOMIC_ACQUIRE)) /* cpu_main */
        machine_relax();
}
