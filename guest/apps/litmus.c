/*
 * litmus.elf: the rings' litmus tests on two CPUs of the guest, as TAP. rounds=N (20000).
 */
#include <stdio.h>

#include "guest/apps/litmus_rings.h"
#include "guest/libc/arguments.h"
#include "guest/libc/start.h"
#include "guest/platform/machine.h"

const char guest_program[] = "litmus";
const char *const guest_words[] = {"rounds", NULL};

int main(int argc, char **argv)
{
    static struct litmus litmus;
    unsigned passed = 0, failed = 0;
    if (machine_num_cpus() < 2) {
        printf("Bail out! two CPUs are needed\n0 passed, 1 failed\n");
        return 1;
    }
    for (unsigned i = 0; i < litmus_cases_count; i++) {
        litmus_init(&litmus, &litmus_cases[i], argument_number("rounds", 20000), machine_now_ns,
                    machine_relax);
        if (machine_run_on_cpu(1, litmus_device, &litmus) != 0) {
            printf("Bail out! the second CPU does not start\n0 passed, 1 failed\n");
            return 1;
        }
        litmus_driver(&litmus);
        machine_cpu_wait(1);
        const char *failure = litmus_failure(&litmus);
        if (failure)
            printf("# %s\n", failure);
        else if (litmus_cases[i].sleeping)
            printf("# %llu kicks, %llu sleeps in %llu rounds\n", (unsigned long long)litmus.kicked,
                   (unsigned long long)litmus.slept, (unsigned long long)litmus.rounds);
        printf("%sok %u - %s\n", failure ? "not " : "", i + 1, litmus_cases[i].name);
        failed += failure != NULL;
        passed += failure == NULL;
    }
    printf("1..%u\n%u passed, %u failed\n", litmus_cases_count, passed, failed);
    return failed != 0;
}
