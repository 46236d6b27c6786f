#include <stdio.h>
#include <string.h>
#include <time.h>

#include "greeting.h"
#include "moon.h"

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--version") == 0) {
        puts("hello 1.0");
        return 0;
    }
    for (int i = 1; i < argc; i++)
        greet(argv[i]);
    printf("The moon is %.0f %% full.\n", 100 * moon_light(time(NULL)));
    return 0;
}
