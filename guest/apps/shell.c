#include "guest/libc/start.h"
#include <stdio.h>
const char guest_program[] = "shell";
int main(void);
int main(void)
{
    printf("hello %d\n", 1);
    return 0;
}
